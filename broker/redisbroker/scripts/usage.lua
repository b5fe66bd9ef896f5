-- Says what is kept of a channel in one partition, after forgetting the counts of records that have expired.
--
-- KEYS  1 counts, 2 mailboxes by age, 3 channels
-- ARGV  1 channel
-- returns {now us, pending, bytes, records, dead, mailboxes, when the oldest was stored ms or 0}
local now = clock()
local slot = math.floor(now / 1000 / SLOT)
local n = redis.call('HMGET', KEYS[1], 'pending', 'bytes', 'records', 'dead', 'low')
local records = tonumber(n[3] or 0)
if n[5] and tonumber(n[5]) < slot then
  local low, till, fields = tonumber(n[5]), 0, {}
  till = math.min(slot, low + 500)
  for s = low + 1, till do fields[#fields + 1] = 'e' .. fmt(s) end
  for _, v in ipairs(redis.call('HMGET', KEYS[1], unpack(fields))) do
    if v then records = records - tonumber(v) end
  end
  redis.call('HDEL', KEYS[1], unpack(fields))
  redis.call('HSET', KEYS[1], 'low', fmt(till), 'records', fmt(records))
end
local pending, dead = tonumber(n[1] or 0), tonumber(n[4] or 0)
if pending <= 0 and records <= 0 and dead <= 0 then
  redis.call('DEL', KEYS[1])
  redis.call('SREM', KEYS[3], ARGV[1])
  return {now, 0, 0, 0, 0, 0, 0}
end
local oldest = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
return {now, pending, tonumber(n[2] or 0), records, dead, redis.call('ZCARD', KEYS[2]), tonumber(oldest[2] or 0)}
