-- Says who has a mailbox, and what was tried with one of its entries.
--
-- KEYS  1-8 of the mailbox
-- ARGV  1 sequence
-- returns {now us, owner or empty, counts or empty}
local m = redis.call('HMGET', KEYS[1], 'o', 'c' .. ARGV[1])
return {clock(), m[1] or '', m[2] or ''}
