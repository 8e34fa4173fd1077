-- For wrk: asks for the paths of a list in turn, each thread from a place of its own, and ends with one line of JSON.
-- The requests are put together before the clock runs, so that wrk has nothing to do but to send them.

local threads = 0

function setup(thread)
   thread:set("number", threads)
   threads = threads + 1
end

function init(arguments)
   requests = {}
   for path in io.lines(arguments[1]) do
      requests[#requests + 1] = wrk.format("GET", path)
   end
   at = (number * 509) % #requests
end

function request()
   at = at % #requests + 1
   return requests[at]
end

function done(summary, latency)
   local e = summary.errors
   print(string.format(
      '{"requests": %d, "bytes": %d, "seconds": %f, "failed": %d, "p50_us": %d, "p99_us": %d}',
      summary.requests, summary.bytes, summary.duration / 1e6,
      e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99)))
end
