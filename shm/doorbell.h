/*
 * A doorbell: one side rings, the other sleeps on it until it rings. A pair of connected unix sockets, each
 * side holding its own end only. Not an eventfd: two processes share an eventfd's counter and flags, so that
 * a peer could make it blocking, fill it, and so hang the process that rings it; or drain it and so swallow
 * the ring. Here no call ever depends on what the peer did to its end, and the sleeper is also woken when
 * the other side dies. The descriptors are plain ints with one owner each; any thread.
 */
#ifndef SHM_DOORBELL_H
#define SHM_DOORBELL_H

/* Makes a doorbell: *ringer is the end that rings, *sleeper the end to poll for reading. The caller owns
 * both. -errno of socketpair. */
int doorbell_new(int *ringer, int *sleeper);

/* Rings. Never blocks, never raises SIGPIPE; a doorbell that has rung and was not answered stays rung.
 * -ENOTCONN: the other side has closed its end. */
int doorbell_ring(int ringer);

/* Takes back every ring so far: afterwards the descriptor is readable only for a later ring, or because the
 * other side is gone, or has rung some thousand times. Never blocks. -ENOTCONN: the other side has closed its
 * end. */
int doorbell_drain(int sleeper);

#endif
