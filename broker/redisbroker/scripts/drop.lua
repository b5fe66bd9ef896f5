-- Removes a dead letter for good.
--
-- KEYS  1-8 of the mailbox, 9 record, 10 where it is if the key was used again
-- ARGV  1 MID, 2 receipts ms, 3 channel, 4 ID, 5 ref, 6 only if it died before, ms, or 0 for any
-- returns {done, now us, pending, bytes, records, dead}
local now = clock()
local ms = math.floor(now / 1000)
if tonumber(ARGV[6]) > 0 then
  local died = redis.call('ZSCORE', KEYS[6], ARGV[1])
  if died and tonumber(died) >= tonumber(ARGV[6]) then return {0, now} end
end
local gone = redis.call('HDEL', KEYS[7], ARGV[1])
redis.call('ZREM', KEYS[6], ARGV[1])
if gone == 0 then return {0, now} end
redis.call('HINCRBY', KEYS[4], 'dead', -1)
local slot = slotOf(ms + tonumber(ARGV[2]))
local key
for i = 9, 10 do
  if redis.call('HGET', KEYS[i], 'm') == ARGV[1] then key = KEYS[i]; break end
end
if key then
  local before = expiry(key, ms)
  if before and before > slot then slot = before end
  move(KEYS[4], before, slot)
else
  key = redis.call('EXISTS', KEYS[9]) == 0 and KEYS[9] or KEYS[10]
  redis.call('HINCRBY', KEYS[4], 'records', 1)
  move(KEYS[4], nil, slot)
  redis.call('HSET', key, 'm', ARGV[1], 'c', ARGV[3], 'i', ARGV[4], 't', fmt(ms), 'a', '0')
  if ARGV[5] ~= '' then redis.call('HSET', key, 'f', ARGV[5]) end
end
redis.call('HSET', key, 's', 'erased', 'e', fmt(ms))
redis.call('PEXPIREAT', key, fmt(slot * SLOT))
local n = redis.call('HMGET', KEYS[4], 'pending', 'bytes', 'records', 'dead')
return {1, now, tonumber(n[1] or 0), tonumber(n[2] or 0), tonumber(n[3] or 0), tonumber(n[4] or 0)}
