-- Makes an owner the owner of a mailbox, and returns the first page.
--
-- KEYS  1-8 of the mailbox
-- ARGV  1 owner, 2 window, 3 limit and 4 bytes of the page, 5 highest fence the caller knows of
-- returns {now us, fence, last sequence, owner before or empty, entry, counts, entry, counts, ...}
--
-- An owner before that did not detach may have pushed as many entries as its window holds: each counts an attempt more,
-- and the first of them a death.
local now = clock()
local m = redis.call('HMGET', KEYS[1], 'f', 'o', 'w', 'l')
always(KEYS[1])
local fence = math.max(tonumber(m[1] or 0) + 1, now, tonumber(ARGV[5]) + 1)
redis.call('HSET', KEYS[1], 'f', fmt(fence), 'o', ARGV[1], 'w', ARGV[2])
if m[2] then
  local left, i, death = tonumber(m[3] or 1), 0, 1
  local n = redis.call('LLEN', KEYS[2])
  while left > 0 and i < n do
    local j, _, seq = at(KEYS[2], i, n)
    if j >= n then break end
    local field = 'c' .. fmt(seq)
    local a, f, d, b = string.match(redis.call('HGET', KEYS[1], field) or '0 0 0 0', '^(%d+) (%d+) (%d+) (%d+)$')
    redis.call('HSET', KEYS[1], field, fmt(a + 1) .. ' ' .. f .. ' ' .. fmt(d + death) .. ' ' .. b)
    left, i, death = left - 1, j + 1, 0
  end
end
return page(KEYS[1], KEYS[2], 0, tonumber(ARGV[3]), tonumber(ARGV[4]), {now, fence, tonumber(m[4] or 0), m[2] or ''})
