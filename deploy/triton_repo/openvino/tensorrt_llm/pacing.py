"""How many tokens go into one streamed response, where `stream_interval` leaves that to the engine.

A token that is sent alone is seen soonest, but each response costs CPU time that the engine could compute
with: the Triton model makes tensors, the ensemble hands them on, the gRPC thread writes them. What one step's
responses cost is to stay a small share of what the machine can do in one step.

With 2 cores a 144 M int4 model gets 4 tokens a response for 1 sequence (steps of 7 ms), 8 for 8 (20 ms) and
for 32 (36 ms), as does a 7 M model with steps of 1 ms.
"""

from __future__ import annotations

import math

RESPONSE_S = 0.0004
"""CPU time of a response in the server, through an ensemble to gRPC: about 0.4 ms on a server's core."""

SHARE = 0.008
"""Of all cores' time: what responses may cost. The engine loses about twice that: its threads wait for each
other in every layer, so that work which holds up one of them holds up all."""

SENDER_SHARE = 0.5
"""Of one core's time: what responses may cost however many cores there are, as one thread sends them all."""

MOST_TOKENS = 8
LONGEST_S = 0.3
"""No response waits for more tokens than this, nor longer: text is to flow, whatever it costs."""

_WEIGHT = 0.1  # of the latest step in the average


def tokens_per_response(streams: int, step_s: float, cores: int) -> int:
    """Tokens that each of `streams` sequences collects before they are sent, 1 to 8.

    Args:
        streams: sequences in the batch that stream, each of which gets one token a step.
        step_s: seconds that a step takes.
        cores: CPU cores that the engine and the server share.
    """
    if step_s <= 0:
        return 1
    affordable = math.ceil(streams * RESPONSE_S / (step_s * min(SHARE * cores, SENDER_SHARE)))
    return max(1, min(affordable, MOST_TOKENS, int(LONGEST_S / step_s)))


def smoothed(average_s: float, step_s: float) -> float:
    """The moving average of step times after one more step; an average of 0 is none yet."""
    return average_s + _WEIGHT * (step_s - average_s) if average_s else step_s
