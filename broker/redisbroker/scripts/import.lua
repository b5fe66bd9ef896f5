-- Takes over messages of one mailbox from another store, in their order. What is known by its MID is passed over.
--
-- KEYS  1-8 of the mailbox, 9 and 10 the record of 7, and where that is if the key was used again; then three for each
--       message: its record, where that is if the key was used again, and where to keep a record whose key this message
--       takes, or the second again
-- ARGV  1 mailbox, 2 channel, 3 ID, 4 highest sequence the caller knows of, 5 receipts ms, 6 dedupe ms, 7 MID of the message
--       that was copied before the first of these, and comes before it in the mailbox, or empty; then 19 for each
--       message: MID, state, sequence, expires ms or 0, retain ms, size of the body, the message as stored or empty,
--       counts, stored ms, finished ms or 0, attempts, node, reason, detail, reply, ref, fingerprint, until when its
--       record is kept (of a dead letter: at least) ms, MID of the record at its third key or empty
-- returns {now us, what became of each: i imported, s known, x its time is over}, or {now us, again, number of a message,
--       MID}: its key may be used again; call once more with the third key and the MID; or {now us, lost}: 7 is not there, as
--       after a failover, and what comes behind it must wait until it is copied again
--
-- The first write is one that Redis refuses at maxmemory: then nothing is done. Limits are not looked at: these messages were
-- accepted once.
local now = clock()
local ms = math.floor(now / 1000)
local FIRST, EACH = 7, 19
local total = (#ARGV - FIRST) / EACH

local function arg(k, i) return ARGV[FIRST + (k - 1) * EACH + i] end
local function key(k, i) return KEYS[10 + (k - 1) * 3 + i] end

local function known(k)
  return redis.call('HGET', key(k, 1), 'm') == arg(k, 1) or redis.call('HGET', key(k, 2), 'm') == arg(k, 1) or
    redis.call('ZSCORE', KEYS[6], arg(k, 1))
end

if ARGV[7] ~= '' and redis.call('HGET', KEYS[9], 'm') ~= ARGV[7] and redis.call('HGET', KEYS[10], 'm') ~= ARGV[7] then
  return {now, 'lost'}
end

local results, record = {}, {}
for k = 1, total do
  if known(k) then
    results[k] = 's'
  else
    -- The record of a message that came here with the same key stays the one that is found by it, unless it could be
    -- used again by now.
    local r = redis.call('HMGET', key(k, 1), 'm', 's', 't')
    if not r[1] then
      record[k] = key(k, 1)
    elseif arg(k, 2) == 'stored' and r[2] ~= 'stored' and tonumber(r[3]) + tonumber(ARGV[6]) <= ms then
      if arg(k, 19) ~= r[1] then return {now, 'again', k, r[1]} end
      record[k] = key(k, 1)
    else
      record[k] = key(k, 2)
    end
  end
end

local n = redis.call('HMGET', KEYS[4], 'pending', 'bytes', 'records', 'dead')
local pending, all, records, dead = tonumber(n[1] or 0), tonumber(n[2] or 0), tonumber(n[3] or 0), tonumber(n[4] or 0)
local slots = {}

-- Writes a record, and what is known of a message that has ended; slot is when it expires.
local function note(k, seq, slot)
  local set = {'m', arg(k, 1), 's', arg(k, 2), 'c', ARGV[2], 'i', ARGV[3], 't', arg(k, 9)}
  local function add(field, value) if value ~= '' then set[#set + 1] = field; set[#set + 1] = value end end
  add('p', arg(k, 17)); add('f', arg(k, 16))
  if arg(k, 4) ~= '0' then add('x', arg(k, 4)) end
  if seq then
    add('q', fmt(seq))
  else
    add('a', arg(k, 11)); add('e', arg(k, 10)); add('n', arg(k, 12)); add('g', arg(k, 13)); add('d', arg(k, 14)); add('y', arg(k, 15))
  end
  if arg(k, 19) ~= '' and record[k] == key(k, 1) and redis.call('EXISTS', record[k]) == 1 then
    redis.call('RENAME', record[k], key(k, 3))
  end
  redis.call('HSET', record[k], unpack(set))
  if slot then
    redis.call('PEXPIREAT', record[k], fmt(slot * SLOT))
    slots[slot] = (slots[slot] or 0) + 1
  end
  records = records + 1
end

local function unfinished(k)
  local m = redis.call('HMGET', KEYS[1], 'l', 'n', 'b', 'o', 'u', 'v')
  -- Without an owner nobody has read anything, and the message keeps the sequence that it had. It is about the
  -- time at which it was stored, which is how old the mailbox is.
  local seq = math.max(tonumber(m[1] or 0) + 1, tonumber(arg(k, 3)))
  if m[4] then seq = math.max(seq, now, tonumber(ARGV[4]) + 1) end
  local size = tonumber(arg(k, 6))
  push(ARGV[1], arg(k, 1), seq, tonumber(arg(k, 4)), tonumber(arg(k, 5)), size, arg(k, 7), m, tonumber(m[2] or 0) + 1,
    tonumber(m[3] or 0) + size)
  if arg(k, 8) ~= '0 0 0 0' then redis.call('HSET', KEYS[1], 'c' .. fmt(seq), arg(k, 8)) end
  pending, all = pending + 1, all + size
  note(k, seq)
end

local function deadLetter(k)
  redis.call('HSET', KEYS[7], arg(k, 1), '1 ' .. arg(k, 10) .. ' ' .. arg(k, 11) .. ' 0 0 0 ' .. #arg(k, 13) .. ' ' .. #arg(k, 14) ..
    ' ' .. #arg(k, 15) .. ' ' .. #arg(k, 12) .. '\n' .. arg(k, 13) .. arg(k, 14) .. arg(k, 15) .. arg(k, 12) ..
    arg(k, 3) .. ' ' .. arg(k, 1) .. ' ' .. arg(k, 4) .. ' ' .. arg(k, 5) .. ' ' .. arg(k, 6) .. '\n' .. arg(k, 7))
  redis.call('ZADD', KEYS[6], arg(k, 10), arg(k, 1))
  dead = dead + 1
  note(k, nil, slotOf(math.max(ms + tonumber(ARGV[5]), tonumber(arg(k, 18)))))
end

local changed = false
for k = 1, total do
  if not results[k] then
    local slot = slotOf(tonumber(arg(k, 18)))
    if arg(k, 2) == 'stored' then
      unfinished(k)
    elseif arg(k, 2) == 'dead' then
      deadLetter(k)
    elseif slot * SLOT > ms then
      note(k, nil, slot)
    else
      results[k] = 'x'
    end
    if not results[k] then results[k], changed = 'i', true end
  end
end
if changed then
  if not n[1] then redis.call('HSET', KEYS[4], 'low', fmt(math.floor(ms / SLOT))) end
  redis.call('HSET', KEYS[4], 'pending', fmt(pending), 'bytes', fmt(all), 'records', fmt(records), 'dead', fmt(dead))
  for slot, some in pairs(slots) do redis.call('HINCRBY', KEYS[4], 'e' .. fmt(slot), some) end
  redis.call('SADD', KEYS[8], ARGV[2])
end
return {now, table.concat(results)}
