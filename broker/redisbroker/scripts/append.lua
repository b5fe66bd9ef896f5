-- Stores a message at the end of its mailbox.
--
-- KEYS  1-8 of the mailbox (see keys.go), 9 record, 10 where to keep a record whose key is used again, or the same
-- ARGV  1 MID, 2 fingerprint, 3 mailbox, 4 expires ms or 0, 5 ttl ms or 0, 6 retention ms, 7 size of the body,
--       8 the message as stored, 9 highest sequence the caller knows of, 10 entries and 11 bytes the mailbox may hold,
--       12 entries, 13 bytes, 14 records and 15 dead letters this partition of the channel may hold, 16 channel, 17 ID,
--       18 ref, 19 node that waits or empty, 20 dedupe ms, 21 MID of the record at 10 or empty, 22 the calling process, or empty if it tells owners
--       itself, 23 what the names of the channels of nodes begin with, 24 size of the largest message that is told whole
-- returns {what, now us, MID, state, sequence, owner, pending, bytes, records, dead, sequence of the entry before or 0,
--       expires, retain, 1 if the owner was told}; what is ok, same (this MID is stored), duplicate, conflict, mailbox, channel, records, dead,
--       expired, or again: the key may be used again; call once more with 10 and 21
--
-- All checks come before the first write, which is one that Redis refuses at maxmemory: then nothing is done. The record
-- comes last: it is what makes the key used.
local now = clock()
local ms = math.floor(now / 1000)
local r = redis.call('HMGET', KEYS[9], 'm', 'p', 's', 't', 'w')
if r[1] then
  local again = r[1] ~= ARGV[1] and r[3] ~= 'stored' and tonumber(r[4]) + tonumber(ARGV[20]) <= ms
  if again and ARGV[21] ~= r[1] then return {'again', now, r[1]} end
  if not again then
    if r[1] ~= ARGV[1] and ARGV[2] ~= '' and r[2] and r[2] ~= '' and r[2] ~= ARGV[2] then
      return {'conflict', now, r[1], r[3]}
    end
    -- Something is written, or WAIT would prove nothing: it waits for what this connection wrote last.
    local ttl = redis.call('PTTL', KEYS[9])
    redis.call('PEXPIREAT', KEYS[9], fmt(ms + math.max(ttl, 1000)))
    if ttl < 0 then redis.call('PERSIST', KEYS[9]) end
    if ARGV[19] ~= '' and r[3] == 'stored' then
      local w = r[5] or ''
      local _, count = string.gsub(w, '\n', '')
      if count < 4 and not string.find('\n' .. w, '\n' .. ARGV[19] .. '\n', 1, true) then
        redis.call('HSET', KEYS[9], 'w', w .. ARGV[19] .. '\n')
      end
    end
    return {r[1] == ARGV[1] and 'same' or 'duplicate', now, r[1], r[3]}
  end
end

local expires = tonumber(ARGV[4])
if tonumber(ARGV[5]) > 0 then expires = ms + tonumber(ARGV[5]) end
if expires > 0 and expires <= ms then return {'expired', now} end
local retain = ms + tonumber(ARGV[6])
local size = tonumber(ARGV[7])
local m = redis.call('HMGET', KEYS[1], 'l', 'n', 'b', 'o', 'u', 'v')
local count, bytes = tonumber(m[2] or 0) + 1, tonumber(m[3] or 0) + size
local n = redis.call('HMGET', KEYS[4], 'pending', 'bytes', 'records', 'dead')
local pending, all = tonumber(n[1] or 0) + 1, tonumber(n[2] or 0) + size
local records, dead = tonumber(n[3] or 0) + 1, tonumber(n[4] or 0)
local full
if count > tonumber(ARGV[10]) or bytes > tonumber(ARGV[11]) then full = 'mailbox'
elseif pending > tonumber(ARGV[12]) or all > tonumber(ARGV[13]) then full = 'channel'
elseif records > tonumber(ARGV[14]) then full = 'records'
elseif dead >= tonumber(ARGV[15]) then full = 'dead' end
if full then return {full, now, '', '', 0, '', pending - 1, all - size, records - 1, dead} end

local seq = math.max(tonumber(m[1] or 0) + 1, now, tonumber(ARGV[9]) + 1)
push(ARGV[3], ARGV[1], seq, expires, retain, size, ARGV[8], m, count, bytes)
if n[1] then
  redis.call('HSET', KEYS[4], 'pending', fmt(pending), 'bytes', fmt(all), 'records', fmt(records))
else
  redis.call('HSET', KEYS[4], 'pending', fmt(pending), 'bytes', fmt(all), 'records', fmt(records), 'dead', fmt(dead),
    'low', fmt(math.floor(ms / SLOT)))
  redis.call('SADD', KEYS[8], ARGV[16])
end
if r[1] then redis.call('RENAME', KEYS[9], KEYS[10]) end
local rec = {'m', ARGV[1], 's', 'stored', 'c', ARGV[16], 'i', ARGV[17], 't', fmt(ms), 'q', fmt(seq)}
local function add(field, value) if value ~= '' then rec[#rec + 1] = field; rec[#rec + 1] = value end end
add('p', ARGV[2])
add('f', ARGV[18])
if expires > 0 then add('x', fmt(expires)) end
if ARGV[19] ~= '' then add('w', ARGV[19] .. '\n') end
redis.call('HSET', KEYS[9], unpack(rec))
local told = 0
local node = m[4] and ARGV[22] ~= '' and string.match(m[4], '^[^#]*')
if node and node ~= ARGV[22] then
  -- Here, and not from the caller: it is one command less, whoever hears it has all in order, and none is missing because
  -- the caller died. See parseOffer.
  local text = 'r' .. ARGV[3]
  if #ARGV[8] <= tonumber(ARGV[24]) then
    text = 'o' .. #ARGV[3] .. ':' .. ARGV[3] .. #m[4] .. ':' .. m[4] .. (m[1] or '0') .. ' ' .. fmt(seq) .. ' ' .. ARGV[1] .. ' ' ..
      fmt(expires) .. ' ' .. fmt(retain) .. ' ' .. fmt(size) .. '\n' .. ARGV[8]
  end
  redis.call('PUBLISH', ARGV[23] .. node, text)
  told = 1
end
return {'ok', now, ARGV[1], 'stored', seq, m[4] or '', pending, all, records, dead, tonumber(m[1] or 0), expires, retain, told}
