-- Reads back all that is kept of messages of one mailbox.
--
-- KEYS  1-8 of the mailbox, then two for each message: its record, and where that is if the key was used again
-- ARGV  the MIDs
-- returns {now us, and for each: ms that its record has left, -1 for ever or -2 none, how many values its record is, these,
--       entry or empty, counts or empty, dead letter or empty}
local out = {clock()}
local length, next = redis.call('LLEN', KEYS[2]), 0
for k = 1, #ARGV do
  local left, rec, state, seq = -2, {}, nil, nil
  for i = 7, 8 do
    local m = redis.call('HMGET', KEYS[i + 2 * k], 'm', 's', 'q')
    if m[1] == ARGV[k] then
      left, rec, state, seq = redis.call('PTTL', KEYS[i + 2 * k]), redis.call('HGETALL', KEYS[i + 2 * k]), m[2], tonumber(m[3] or 0)
      break
    end
  end
  out[#out + 1] = left
  out[#out + 1] = #rec
  for _, v in ipairs(rec) do out[#out + 1] = v end
  local entry, counts = '', ''
  if state == 'stored' then
    -- Mostly it is the one behind the one before.
    local i, e, found = at(KEYS[2], next, length)
    if found ~= seq then i, e, found = search(KEYS[2], seq, length) end
    if found == seq then
      next = i + 1
      entry, counts = e, redis.call('HGET', KEYS[1], 'c' .. fmt(seq)) or ''
    end
  end
  out[#out + 1] = entry
  out[#out + 1] = counts
  out[#out + 1] = redis.call('HGET', KEYS[7], ARGV[k]) or ''
end
return out
