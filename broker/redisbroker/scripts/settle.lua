-- Finishes entries of a mailbox, or notes their counts. All of it is one step.
--
-- KEYS  1-8 of the mailbox, 9 presence, then two for each outcome: its record, and where that is if the key was used again
-- ARGV  1 mode, 2 owner, 3 mailbox, 4 receipts ms, 5 dedupe ms, 6 node, 7 grace ms, 8 ID; then ten for each outcome:
--       sequence, MID, state, reason, detail, reply, attempts, failures, deaths, not before ms
--       modes: own; detach, which gives the mailbox up; cancel, which finishes what was never pushed, in the name of the
--       owner, or, if that is empty, if there is none; sweep, which finishes what is due, an entry of a mailbox that has
--       an owner only when the grace is over
-- returns {ok, now us, verdicts, pending, bytes, records, dead, who is first in line for the mailbox that is given up or empty,
--       number of an outcome, nodes that wait for it, ref if it is dead, ...}, a digit for each verdict: 0 settled, 1 gone, 2 too late or not yet; or {fenced, now us, owner or empty}
local now = clock()
local ms = math.floor(now / 1000)
local mode, owner = ARGV[1], ARGV[2]
local m = redis.call('HMGET', KEYS[1], 'o', 'n', 'b', 'x', 'y')
if mode ~= 'sweep' and (m[1] or '') ~= owner then return {'fenced', now, m[1] or ''} end
always(KEYS[1])
local count, bytes, holes = tonumber(m[2] or 0), tonumber(m[3] or 0), tonumber(m[4] or 0)
local finished, freed, died, popped = 0, 0, 0, false
local slots, wait = {}, {}
local first, firstSeq -- the head, once it was looked at

local function locate(seq, mid)
  if not first then
    first = redis.call('LINDEX', KEYS[2], 0)
    if first and first ~= HOLE then firstSeq = tonumber(string.match(first, '^%d+')) end
  end
  if not first then return end
  local i, entry, found = 0, first, firstSeq
  if firstSeq ~= seq then i, entry, found = search(KEYS[2], seq, redis.call('LLEN', KEYS[2])) end
  if found ~= seq then return end
  local _, m2, expires, retain, size = head(entry)
  if m2 == mid then return i, entry, expires, retain, size end
end

local function take(i)
  if i > 0 then
    redis.call('LSET', KEYS[2], i, HOLE)
    holes = holes + 1
    return
  end
  redis.call('LPOP', KEYS[2])
  popped = true
  first, firstSeq = nil, nil
  while holes > 0 and redis.call('LINDEX', KEYS[2], 0) == HOLE do
    redis.call('LPOP', KEYS[2])
    holes = holes - 1
  end
end

local function record(k, mid)
  for _, key in ipairs({KEYS[8 + 2 * k], KEYS[9 + 2 * k]}) do
    local r = redis.call('HMGET', key, 'm', 't', 'w', 'f')
    if r[1] == mid then return key, r[2], r[3], r[4] end
  end
end

local function settle(k)
  local a = 8 + (k - 1) * 10
  local seq, mid, state = tonumber(ARGV[a + 1]), ARGV[a + 2], ARGV[a + 3]
  local i, entry, expires, retain, size = locate(seq, mid)
  if not i then return '1' end
  local field = 'c' .. fmt(seq)
  local counts = ARGV[a + 7] .. ' ' .. ARGV[a + 8] .. ' ' .. ARGV[a + 9] .. ' ' .. ARGV[a + 10]
  if state == 'stored' then
    redis.call('HSET', KEYS[1], field, counts)
    return '0'
  end
  local attempts = ARGV[a + 7]
  if mode == 'sweep' or mode == 'cancel' then
    counts = redis.call('HGET', KEYS[1], field) or '0 0 0 0'
    attempts = string.match(counts, '^%d+')
    if mode == 'cancel' and attempts ~= '0' then return '2' end
    local grace = m[1] and tonumber(ARGV[7]) or 0
    if mode == 'sweep' and deadline(expires, retain) + grace > ms then return '2' end
  end
  take(i)
  redis.call('HDEL', KEYS[1], field)
  finished, freed = finished + 1, freed + size
  local dead = state == 'dead'
  if dead then
    redis.call('HSET', KEYS[7], mid, '1 ' .. fmt(ms) .. ' ' .. counts .. ' ' .. #ARGV[a + 4] .. ' ' .. #ARGV[a + 5] .. ' ' ..
      #ARGV[a + 6] .. ' ' .. #ARGV[6] .. '\n' .. ARGV[a + 4] .. ARGV[a + 5] .. ARGV[a + 6] .. ARGV[6] .. entry)
    redis.call('ZADD', KEYS[6], fmt(ms), mid)
    died = died + 1
  end
  local key, stored, waiters, ref = record(k, mid)
  if not key then return '0' end
  local set = {'s', state, 'e', fmt(ms), 'a', attempts}
  local function add(name, value) if value ~= '' then set[#set + 1] = name; set[#set + 1] = value end end
  add('n', ARGV[6]); add('g', ARGV[a + 4]); add('d', ARGV[a + 5]); add('y', ARGV[a + 6])
  redis.call('HDEL', key, 'q', 'w')
  redis.call('HSET', key, unpack(set))
  local slot = slotOf(math.max(ms + tonumber(ARGV[4]), tonumber(stored) + tonumber(ARGV[5])))
  redis.call('PEXPIREAT', key, fmt(slot * SLOT))
  slots[slot] = (slots[slot] or 0) + 1
  if not dead then ref = nil end
  if waiters or ref then
    wait[#wait + 1] = k - 1
    wait[#wait + 1] = waiters or ''
    wait[#wait + 1] = ref or ''
  end
  return '0'
end

local verdicts = {}
for k = 1, (#ARGV - 8) / 10 do verdicts[k] = settle(k) end

count, bytes = count - finished, bytes - freed
if mode == 'detach' then
  redis.call('HDEL', KEYS[1], 'o', 'w')
  redis.call('HDEL', KEYS[9], ARGV[8])
end
if count <= 0 then
  redis.call('DEL', KEYS[2])
  if finished > 0 then
    redis.call('ZREM', KEYS[3], ARGV[3])
    redis.call('ZREM', KEYS[5], ARGV[3])
  end
  if m[1] and mode ~= 'detach' or m[5] then
    if finished > 0 then
      redis.call('HDEL', KEYS[1], 'x', 'u', 'k', 'v')
      redis.call('HSET', KEYS[1], 'n', '0', 'b', '0')
    end
  else
    -- What is left is last sequence and fence; time gives higher ones.
    redis.call('DEL', KEYS[1])
  end
elseif finished > 0 then
  if holes >= 256 and holes * 4 >= count then
    redis.call('LREM', KEYS[2], 0, HOLE)
    holes = 0
  end
  redis.call('HSET', KEYS[1], 'n', fmt(count), 'b', fmt(bytes), 'x', fmt(holes))
  if popped then
    local seq = string.match(redis.call('LINDEX', KEYS[2], 0), '^%d+')
    redis.call('ZADD', KEYS[5], fmt(math.floor(tonumber(seq) / 1000)), ARGV[3])
  end
end
local n = redis.call('HMGET', KEYS[4], 'pending', 'bytes', 'records', 'dead')
for i = 1, 4 do n[i] = tonumber(n[i] or 0) end
if finished > 0 then
  n[1], n[2], n[4] = n[1] - finished, n[2] - freed, n[4] + died
  redis.call('HSET', KEYS[4], 'pending', fmt(n[1]), 'bytes', fmt(n[2]), 'dead', fmt(n[4]))
  for slot, some in pairs(slots) do redis.call('HINCRBY', KEYS[4], 'e' .. fmt(slot), some) end
end
local next = mode == 'detach' and m[5] and string.match(m[5], '^[^\n]+') or ''
local out = {'ok', now, table.concat(verdicts), n[1], n[2], n[3], n[4], next}
for i = 1, #wait do out[#out + 1] = wait[i] end
return out
