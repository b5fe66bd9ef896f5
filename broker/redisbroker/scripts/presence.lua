-- Says who has mailboxes of a channel in one partition, a bounded number per call.
--
-- KEYS  1 presence
-- ARGV  1 cursor, 2 roughly how many
-- returns {now us, cursor, ID, who has it, ID, who has it, ...}; cursor is 0 at the end
local now = clock()
local v = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local out = {now, v[1]}
for i = 1, #v[2] do out[#out + 1] = v[2][i] end
return out
