-- Recounts what is kept of a channel in one partition, and compares it with what is counted.
--
-- KEYS  1 counts, 2 mailboxes by age, 3 when dead letters died, 4 and up: the mailboxes' hashes
-- ARGV  the mailboxes, in the order of the hashes
-- returns {now us, moved} if these are not the channel's mailboxes any more, else {now us, what is wrong or empty}
local now = clock()
if redis.call('ZCARD', KEYS[2]) ~= #ARGV then return {now, 'moved'} end
local n = redis.call('HGETALL', KEYS[1])
local counted, ending = {pending = 0, bytes = 0, records = 0, dead = 0}, 0
for i = 1, #n, 2 do
  if string.sub(n[i], 1, 1) == 'e' then
    ending = ending + tonumber(n[i + 1])
  else
    counted[n[i]] = tonumber(n[i + 1])
  end
end
local pending, bytes = 0, 0
for i = 1, #ARGV do
  if not redis.call('ZSCORE', KEYS[2], ARGV[i]) then return {now, 'moved'} end
  local m = redis.call('HMGET', KEYS[3 + i], 'n', 'b')
  pending, bytes = pending + tonumber(m[1] or 0), bytes + tonumber(m[2] or 0)
end
local dead, wrong = redis.call('ZCARD', KEYS[3]), ''
local function check(name, is)
  if counted[name] ~= is then wrong = wrong .. ' ' .. name .. ' ' .. fmt(is) .. ' counted ' .. fmt(counted[name]) end
end
check('pending', pending)
check('bytes', bytes)
check('dead', dead)
check('records', pending + ending)
return {now, wrong}
