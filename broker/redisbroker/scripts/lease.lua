-- Takes a lease, renews it, or gives it up. A hash and not a string, so that a user of Redis needs no further rights.
--
-- KEYS  1 the lease
-- ARGV  1 who asks  2 for how long, ms; 0 gives it up
-- returns {now us, 1 if the lease is the asker's from now on}
local now = clock()
local holder = redis.call('HGET', KEYS[1], 'o')
if holder and holder ~= ARGV[1] then return {now, 0} end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
  return {now, 0}
end
always(KEYS[1])
redis.call('HSET', KEYS[1], 'o', ARGV[1])
redis.call('PEXPIREAT', KEYS[1], fmt(math.floor(now / 1000) + tonumber(ARGV[2])))
return {now, 1}
