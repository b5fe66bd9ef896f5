-- Takes a dead letter out and stores its message again at the end of its mailbox.
--
-- KEYS  1-8 of the mailbox, 9 record, 10 where it is if the key was used again
-- ARGV  1 MID, 2 mailbox, 3 ttl ms or 0, 4 retention ms, 5 highest sequence the caller knows of, 6 entries and 7 bytes the
--       mailbox may hold, 8 entries, 9 bytes and 10 records this partition of the channel may hold, 11 channel, 12 ID,
--       13 ref
-- returns {what, now us, owner, pending, bytes, records, dead}; what is ok, none, mailbox, channel or records
local now = clock()
local ms = math.floor(now / 1000)
local v = redis.call('HGET', KEYS[7], ARGV[1])
if not v then return {'none', now} end
local _, entry = letter(v)
local _, _, _, _, size = head(entry)
local stored = string.sub(entry, string.find(entry, '\n', 1, true) + 1)
local key, fresh = nil, false
if redis.call('HGET', KEYS[9], 'm') == ARGV[1] then key = KEYS[9]
elseif redis.call('HGET', KEYS[10], 'm') == ARGV[1] then key = KEYS[10]
else
  fresh = true
  key = redis.call('EXISTS', KEYS[9]) == 0 and KEYS[9] or KEYS[10]
end
local m = redis.call('HMGET', KEYS[1], 'l', 'n', 'b', 'o', 'u', 'v')
local count, bytes = tonumber(m[2] or 0) + 1, tonumber(m[3] or 0) + size
local n = redis.call('HMGET', KEYS[4], 'pending', 'bytes', 'records', 'dead')
local pending, all, records, dead = tonumber(n[1] or 0), tonumber(n[2] or 0), tonumber(n[3] or 0), tonumber(n[4] or 0)
local full
if count > tonumber(ARGV[6]) or bytes > tonumber(ARGV[7]) then full = 'mailbox'
elseif pending + 1 > tonumber(ARGV[8]) or all + size > tonumber(ARGV[9]) then full = 'channel'
elseif fresh and records + 1 > tonumber(ARGV[10]) then full = 'records' end
if full then return {full, now, '', pending, all, records, dead} end
pending, all, dead = pending + 1, all + size, dead - 1
if fresh then records = records + 1 end

local seq = math.max(tonumber(m[1] or 0) + 1, now, tonumber(ARGV[5]) + 1)
local retain, expires = ms + tonumber(ARGV[4]), 0
if tonumber(ARGV[3]) > 0 then expires = ms + tonumber(ARGV[3]) end
push(ARGV[2], ARGV[1], seq, expires, retain, size, stored, m, count, bytes)
redis.call('HDEL', KEYS[7], ARGV[1])
redis.call('ZREM', KEYS[6], ARGV[1])
redis.call('HSET', KEYS[4], 'pending', fmt(pending), 'bytes', fmt(all), 'records', fmt(records), 'dead', fmt(dead))
redis.call('SADD', KEYS[8], ARGV[11])
if fresh then
  redis.call('HSET', key, 'm', ARGV[1], 'c', ARGV[11], 'i', ARGV[12], 't', fmt(ms))
  if ARGV[13] ~= '' then redis.call('HSET', key, 'f', ARGV[13]) end
else
  move(KEYS[4], expiry(key, ms), nil)
  redis.call('PERSIST', key)
  redis.call('HDEL', key, 'e', 'a', 'n', 'g', 'd', 'y', 'x')
end
redis.call('HSET', key, 's', 'stored', 'q', fmt(seq))
if expires > 0 then redis.call('HSET', key, 'x', fmt(expires)) end
return {'ok', now, m[4] or '', pending, all, records, dead}
