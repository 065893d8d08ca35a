"""Load on a server of a language model, and what its clients see of it.

The figures are those of NVIDIA's genai-perf, so that the two can be held side by side:

- TTFT: from sending a request to the first response with text in it.
- E2E: from sending a request to its last response with text.
- TPOT: (E2E - TTFT) / (output tokens - 1), one figure a request that answers with two tokens or more. This is
  what genai-perf calls inter token latency.
- ITL: the gaps between the responses of a request, all requests together. A server that sends several tokens
  in a response has fewer and longer gaps; genai-perf keeps the like as chunked inter token latency.
- Throughput: output tokens, input tokens and requests that were answered, over the time from the first
  request to the last response.
- Goodput: answered requests that kept every limit given for one request, over the same time.
- Percentiles interpolate linearly between the nearest ranks.

Warm-up requests and requests that failed count in none of these; failures are counted by their message.
"""
