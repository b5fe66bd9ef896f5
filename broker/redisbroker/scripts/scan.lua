-- Looks for entries whose time is over, a bounded number per call.
--
-- KEYS  1-8 of the mailbox
-- ARGV  1 mailbox, 2 the sequence after which to begin, 3 entries and 4 bytes to look at, 5 earliest deadline seen by the calls
--       before, or 0, 6 grace ms, given to an owner to do it himself
-- returns {done, now us, sequence of the last entry, earliest deadline, sequence, MID, state, ... of each that is over}
--
-- When it is done and found none, the mailbox is due at the earliest deadline. In most mailboxes deadlines are in the
-- order of the entries, and the first that is not over is the earliest.
local now = clock()
local ms = math.floor(now / 1000)
local m = redis.call('HMGET', KEYS[1], 'o', 'n', 'b', 'k')
local n = redis.call('LLEN', KEYS[2])
always(KEYS[1])
if n == 0 then
  redis.call('ZREM', KEYS[3], ARGV[1])
  return {1, now, 0, 0}
end
local grace = m[1] and tonumber(ARGV[6]) or 0
local after, left, bytes, least = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local mean = tonumber(m[3] or 0) / math.max(tonumber(m[2] or 1), 1)
local out = {0, now, after, least}
local i = 0
if after > 0 then i = search(KEYS[2], after + 1, n) end
local done = i >= n
while not done and left > 0 and bytes > 0 do
  local want = math.max(1, math.min(left, math.ceil(bytes / (mean + 1)), 64))
  for _, e in ipairs(redis.call('LRANGE', KEYS[2], i, i + want - 1)) do
    if e ~= HOLE then
      local seq, mid, expires, retain, size = head(e)
      local due = deadline(expires, retain)
      after, bytes = seq, bytes - size
      if due + grace <= ms then
        out[#out + 1] = seq
        out[#out + 1] = mid
        out[#out + 1] = due == expires and 'expired' or 'dead'
      else
        if least == 0 or due < least then least = due end
        if not m[4] then done = true; break end
      end
    end
  end
  i, left = i + want, left - want
  done = done or i >= n
end
out[1], out[3], out[4] = done and 1 or 0, after, least
if done and #out == 4 and least > 0 then
  redis.call('ZADD', KEYS[3], fmt(least), ARGV[1])
  redis.call('HSET', KEYS[1], 'u', fmt(least))
end
return out
