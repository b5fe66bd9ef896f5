-- Lists a message under its ref. A hint: whoever reads it looks the message up.
--
-- KEYS  1 messages that have this ref
-- ARGV  1 place and name of the record, or MID, 2 how long to keep the list, ms
-- returns now us
local now = clock()
local ms = math.floor(now / 1000)
local before = redis.call('PTTL', KEYS[1])
redis.call('ZADD', KEYS[1], fmt(ms), ARGV[1])
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1001)
redis.call('PEXPIREAT', KEYS[1], fmt(ms + math.max(before, tonumber(ARGV[2]))))
return now
