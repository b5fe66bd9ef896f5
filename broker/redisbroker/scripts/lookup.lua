-- Returns a message's record.
--
-- KEYS  1 record, 2 where it is if the key was used again, 3 dead letters
-- ARGV  1 MID, or the 28 characters of it that say where the record is, 2 "1" if it may be the latter
-- returns {now us, field, value, ...}; or {now us, dead letter without its body}, if that is all; or {now us}
local now = clock()
for i = 1, 2 do
  local m = redis.call('HGET', KEYS[i], 'm')
  if m and (m == ARGV[1] or ARGV[2] == '1' and string.sub(m, 1, 28) == ARGV[1]) then
    local out = {now}
    for _, v in ipairs(redis.call('HGETALL', KEYS[i])) do out[#out + 1] = v end
    return out
  end
end
local v = redis.call('HGET', KEYS[3], ARGV[1])
if v then return {now, brief(v)} end
return {now}
