-- Returns the next page of a mailbox to its owner.
--
-- KEYS  1-8 of the mailbox
-- ARGV  1 owner, 2 the sequence after which to begin, 3 limit, 4 bytes
-- returns {now us, last sequence, entry, counts, ...}, or {now us} if there is another owner
local now = clock()
local m = redis.call('HMGET', KEYS[1], 'o', 'l')
if m[1] ~= ARGV[1] then return {now} end
return page(KEYS[1], KEYS[2], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), {now, tonumber(m[2] or 0)})
