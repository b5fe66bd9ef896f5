-- Every script begins with this file.
--
-- Sequences, fences and times are around 1.8e15: a number put into a string by '..' or tostring becomes
-- 1.79e+15, and the message is lost among the others. So fmt, always.
local function fmt(n) return string.format('%.0f', n) end

-- Microseconds since 1970.
local function clock()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

-- An entry that was finished in the middle of its mailbox leaves a hole, all of the same text, so that LREM removes
-- many in one pass.
local HOLE = '-'

-- The head of an entry; see entry.go.
local function head(entry)
  local seq, mid, expires, retain, size = string.match(entry, '^(%d+) (%w+) (%d+) (%d+) (%d+)\n')
  return tonumber(seq), mid, tonumber(expires), tonumber(retain), tonumber(size)
end

-- When an entry's time is over, in milliseconds.
local function deadline(expires, retain)
  if expires > 0 and expires < retain then return expires end
  return retain
end

-- The first entry at index i or behind it and before n: index, entry, sequence. Index n if there is none.
local function at(list, i, n)
  while i < n do
    local e = redis.call('LINDEX', list, i)
    if e ~= HOLE then return i, e, tonumber(string.match(e, '^%d+')) end
    i = i + 1
  end
  return n
end

-- The first entry whose sequence is at least seq: index, entry, sequence; index n if there is none. Most are near the
-- head, so steps that double come first, and then halves.
local function search(list, seq, n)
  local low, i, step = 0, 0, 1
  local hit, entry, found = n, nil, nil
  local high = n
  while i < n do
    local j, e, s = at(list, i, n)
    if j >= n then high = i; break end
    if s >= seq then hit, entry, found, high = j, e, s, i; break end
    low = j + 1
    i = j + step
    step = step * 2
  end
  while low < high do
    local middle = math.floor((low + high) / 2)
    local j, e, s = at(list, middle, high)
    if j >= high then
      high = middle
    elseif s >= seq then
      hit, entry, found, high = j, e, s, middle
    else
      low = j + 1
    end
  end
  return hit, entry, found
end

-- At maxmemory Redis refuses a script's first write if it can take memory, and lets it go on after any other. Who
-- settles, attaches or sweeps must not be refused: that is how memory becomes free.
local function always(key) redis.call('HDEL', key, '') end

-- Records expire at the begin of a slot of so many milliseconds.
local SLOT = 600000
local function slotOf(ms) return math.ceil(ms / SLOT) end
