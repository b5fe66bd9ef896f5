-- Returns dead letters of a channel in one partition, oldest first, without bodies.
--
-- KEYS  1 when they died, 2 dead letters
-- ARGV  1 begin ms, 2 MID behind which to begin if it died then, 3 end ms or +inf, 4 how many to look at
-- returns {now us, more, MID, died ms, dead letter, ...}
local out, now = {clock(), 0}, nil
local limit = tonumber(ARGV[4])
local skip = 0
while true do
  local ids = redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[1], ARGV[3], 'WITHSCORES', 'LIMIT', skip, limit)
  for i = 1, #ids, 2 do
    if tonumber(ids[i + 1]) > tonumber(ARGV[1]) or ids[i] > ARGV[2] then
      if #out >= 2 + 3 * limit then
        out[2] = 1
        return out
      end
      local v = redis.call('HGET', KEYS[2], ids[i])
      if v then
        out[#out + 1] = ids[i]
        out[#out + 1] = ids[i + 1]
        out[#out + 1] = brief(v)
      end
    end
  end
  if #ids < 2 * limit then return out end
  skip = skip + limit
end
