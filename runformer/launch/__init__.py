"""Processes: who starts, who died and why. One agent a machine, on top of ``torch.distributed.elastic``.

agent (this process) → fork server → workers. The fork server imports torch once and forks the workers from it; it also
outlives an agent that was killed by just long enough to end what it started.
"""
