-- Takes an owner out of the line of those that wait for a mailbox.
--
-- KEYS  1-8 of the mailbox
-- ARGV  1 owner
-- returns {now us, who is the first in line, if nobody has the mailbox, or empty}
local now = clock()
local m = redis.call('HMGET', KEYS[1], 'y', 'o', 'n')
local line = ''
for other in string.gmatch(m[1] or '', '[^\n]+') do
  if other ~= ARGV[1] then line = line .. other .. '\n' end
end
if line ~= '' then
  redis.call('HSET', KEYS[1], 'y', line)
else
  redis.call('HDEL', KEYS[1], 'y')
  if not m[2] and tonumber(m[3] or 0) <= 0 then redis.call('DEL', KEYS[1]) end
end
return {now, not m[2] and string.match(line, '^[^\n]+') or ''}
