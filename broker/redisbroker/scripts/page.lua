-- page appends entries and their counts to out: {entry, counts or empty, ...}. They begin with the first whose
-- sequence is above after; at most limit, and at most so many bytes, but at least one.
local function page(meta, list, after, limit, bytes, out)
  local n = redis.call('LLEN', list)
  if n == 0 then return out end
  local m = redis.call('HMGET', meta, 'n', 'b')
  local mean = tonumber(m[2] or 0) / math.max(tonumber(m[1] or 1), 1)
  local i = 0
  if after > 0 then i = search(list, after + 1, n) end
  local taken = 0
  while i < n and taken < limit and (bytes > 0 or taken == 0) do
    local want = math.max(1, math.min(limit - taken, math.ceil(bytes / (mean + 1)), 256))
    local chunk = redis.call('LRANGE', list, i, i + want - 1)
    for _, e in ipairs(chunk) do
      if e ~= HOLE then
        local seq, _, _, _, size = head(e)
        if taken > 0 and size > bytes then return out end
        bytes = bytes - size
        taken = taken + 1
        out[#out + 1] = e
        out[#out + 1] = redis.call('HGET', meta, 'c' .. fmt(seq)) or ''
        if bytes <= 0 then return out end
      end
    end
    i = i + want
  end
  return out
end
