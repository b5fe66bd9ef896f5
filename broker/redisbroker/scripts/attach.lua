-- Makes an owner the owner of a mailbox, and returns the first page.
--
-- KEYS  1-8 of the mailbox, 9 presence
-- ARGV  1 owner, 2 window, 3 limit and 4 bytes of the page, 5 highest fence the caller knows of, 6 mode: takeover, reject or
--       standby, 7 how many may wait in line, 8 ID, 9 address of the peer, 10 until when this may be done, us, or 0, 11 and up: incarnations that are known to be dead
-- returns {now us, fence, last sequence, owner before or empty, entry, counts, entry, counts, ...}, or, when another has it
--       or is in front in the line, {now us, 0, 0, who}; {now us, 0, 1, who} if the line is full, {now us, 0, 2, ''} if it is too late
--
-- An owner before that did not detach may have pushed as many entries as its window holds: each counts an attempt more,
-- and the first of them a death.
local now = clock()
-- Whoever asked may have given up and registered elsewhere, when the question arrives that the network has kept.
if tonumber(ARGV[10]) > 0 and now > tonumber(ARGV[10]) then return {now, 0, 2, ''} end
local m = redis.call('HMGET', KEYS[1], 'f', 'o', 'w', 'l', 'y')
local dead = {}
for i = 11, #ARGV do dead[ARGV[i]] = true end
local function gone(owner) return dead[string.match(owner, '^[^#]*')] end
always(KEYS[1])
local line, count, mine, before = '', 0, false, nil -- line: without this owner
for other in string.gmatch(m[5] or '', '[^\n]+') do
  if other == ARGV[1] then
    mine = true
  elseif not gone(other) then
    if not mine then before = before or other end
    line, count = line .. other .. '\n', count + 1
  end
end
if ARGV[6] ~= 'takeover' then
  local holder = m[2]
  if not holder or gone(holder) then holder = ARGV[6] == 'standby' and before or nil end
  if holder then
    if ARGV[6] ~= 'standby' or mine then return {now, 0, 0, holder} end
    if count >= tonumber(ARGV[7]) then return {now, 0, 1, holder} end
    redis.call('HSET', KEYS[1], 'y', line .. ARGV[1] .. '\n')
    return {now, 0, 0, holder}
  end
end
if line ~= '' then
  redis.call('HSET', KEYS[1], 'y', line)
elseif m[5] then
  redis.call('HDEL', KEYS[1], 'y')
end
local fence = math.max(tonumber(m[1] or 0) + 1, now, tonumber(ARGV[5]) + 1)
redis.call('HSET', KEYS[1], 'f', fmt(fence), 'o', ARGV[1], 'w', ARGV[2])
redis.call('HSET', KEYS[9], ARGV[8], ARGV[1] .. '\n' .. fmt(math.floor(now / 1000)) .. '\n' .. ARGV[2] .. '\n' .. ARGV[9])
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
