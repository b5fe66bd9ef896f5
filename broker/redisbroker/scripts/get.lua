-- Returns a dead letter without its body.
--
-- KEYS  1 dead letters
-- ARGV  1 MID
-- returns {now us, dead letter}, or {now us}
local v = redis.call('HGET', KEYS[1], ARGV[1])
if v then return {clock(), brief(v)} end
return {clock()}
