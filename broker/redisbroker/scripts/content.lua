-- Returns an unfinished entry, or a dead letter, with its body.
--
-- KEYS  1-8 of the mailbox
-- ARGV  1 MID, 2 sequence or 0
-- returns {now us, entry or empty, dead letter or empty}
local now = clock()
local seq = tonumber(ARGV[2])
if seq > 0 then
  local _, e, found = search(KEYS[2], seq, redis.call('LLEN', KEYS[2]))
  if found == seq then
    local _, mid = head(e)
    if mid == ARGV[1] then return {now, e, ''} end
  end
end
return {now, '', redis.call('HGET', KEYS[7], ARGV[1]) or ''}
