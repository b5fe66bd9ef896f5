-- Puts a message at the end of its mailbox, whose keys are 1-8. box is the mailbox's name; m is what HMGET says of l, n, b, o,
-- u and v; count and bytes are those of the mailbox with the message.
--
-- RPUSH is first: Redis refuses it at maxmemory, and then nothing is done.
local function push(box, mid, seq, expires, retain, size, stored, m, count, bytes)
  local due = deadline(expires, retain)
  redis.call('RPUSH', KEYS[2], fmt(seq) .. ' ' .. mid .. ' ' .. fmt(expires) .. ' ' .. fmt(retain) .. ' ' .. fmt(size) .. '\n' .. stored)
  local set = {'l', fmt(seq), 'n', fmt(count), 'b', fmt(bytes), 'v', fmt(due)}
  if not m[5] or due < tonumber(m[5]) then
    set[9], set[10] = 'u', fmt(due)
    redis.call('ZADD', KEYS[3], fmt(due), box)
  end
  if m[6] and due < tonumber(m[6]) then set[#set + 1] = 'k'; set[#set + 1] = '1' end
  redis.call('HSET', KEYS[1], unpack(set))
  if count == 1 then redis.call('ZADD', KEYS[5], fmt(math.floor(seq / 1000)), box) end
end
