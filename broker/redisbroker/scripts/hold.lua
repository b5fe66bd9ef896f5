-- Sets a key that says who holds something for a while: that a node is alive, or is the one that sees to deadlines.
--
-- KEYS  1 key
-- ARGV  1 who, 2 for how long ms, 3 1 if only when nobody holds it
-- returns {now us, 1 if it was set}
local now = clock()
if ARGV[3] == '1' and redis.call('EXISTS', KEYS[1]) == 1 then return {now, 0} end
redis.call('DEL', KEYS[1]) -- Redis refuses SET at maxmemory, but not behind another write
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {now, 1}
