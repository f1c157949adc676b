// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

const (
	// stopCallTimeout bounds each call to the agent of a machine that is to end
	// anyway. A guest on a busy host may need seconds for an answer, and one that is
	// given up loses its grace period.
	stopCallTimeout = 15 * time.Second
	// releaseTimeout bounds one try to end and delete a machine.
	releaseTimeout = time.Minute

	// killRetry is how long after a SIGKILL that did not arrive the next is sent.
	killRetry = time.Second

	releaseRetryFirst, releaseRetryMax = time.Second, 30 * time.Second
	cleanupRetryFirst, cleanupRetryMax = time.Second, time.Minute
)

// list asks the machine what containers it has, now that all starts have ended.
func (w *worker) list(loop context.Context) {
	h, end := w.hold, w.s.end()
	end.listing = true
	until := end.deadline()
	w.acts.Go(func() {
		ctx, cancel := context.WithTimeout(loop, stopCallTimeout)
		defer cancel()
		list, err := listContainers(ctx, h)
		// A connection that broke a moment ago is no reason to end them without their grace.
		for failures := 1; err != nil && time.Now().Before(until) && sleep(ctx, retryDelay(failures, connectionRetry, time.Second)); failures++ {
			list, err = listContainers(ctx, h)
		}
		w.here(h, func(s *state) {
			end.listing, end.listed = false, true
			if err != nil {
				if loop.Err() == nil {
					w.lose(reasonMachineStuck, "the machine's agent did not answer when the pod was to end: "+err.Error())
				}
				return
			}
			known := map[string]bool{}
			for _, st := range list {
				known[st.GetId()] = true
				w.observedByID(st)
			}
			s.machine.synced = true
			w.absent(known)
		})
	})
}

func listContainers(ctx context.Context, h *machineHold) ([]*agentv1.ContainerStatus, error) {
	g, err := h.lease.Guest(ctx)
	if err != nil {
		return nil, err
	}
	res, err := g.Containers.ListContainers(ctx, connect.NewRequest(&agentv1.ListContainersRequest{}))
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	list := res.Msg.GetContainers()
	return list[:min(len(list), maxContainers)], nil
}

// signal sends signals. One that does not arrive is no error: force follows, and is tried
// again, as nothing follows it where the pod goes on.
func (w *worker) signal(loop context.Context, acts []signalAct) {
	s, h := &w.s, w.hold
	for _, a := range acts {
		c := s.containers[a.container]
		if a.all {
			c.killSent = true
		} else {
			c.stopSent, c.stopAt = true, time.Now()
		}
		c.endHook() // its time is over
		id, name := c.id(s), c.name
		w.acts.Go(func() {
			ctx, cancel := context.WithTimeout(loop, stopCallTimeout)
			defer cancel()
			g, err := h.lease.Guest(ctx)
			if err == nil {
				_, err = g.Containers.SignalContainer(ctx, connect.NewRequest(&agentv1.SignalContainerRequest{Id: id, Signal: int32(a.signal), All: a.all}))
			}
			if err == nil || connect.CodeOf(err) == connect.CodeNotFound {
				return
			}
			w.log.Warn("Container could not be signalled", "container", name, "signal", a.signal.String(), "err", err)
			if !a.all || !sleep(loop, killRetry) {
				return
			}
			w.here(h, func(s *state) {
				if c.id(s) == id {
					c.killSent = false
				}
			})
		})
	}
}

// release gives the machine back, or reaps one that could not be adopted.
func (w *worker) release(ctx context.Context) {
	s, m := &w.s, &w.s.machine
	held, id := w.hold, m.id
	before := m.step
	m.step = machineReleasing
	w.endAdoption()
	if held != nil {
		held.stop() // nothing is to dial any more; its goroutines end while the machine does
	}
	w.log.Info("Releasing machine", "machine", id)
	w.acts.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, releaseTimeout)
		defer cancel()
		var err error
		if held != nil {
			held.wg.Wait()
			err = held.lease.Release(ctx, 0)
		} else {
			err = w.env.supply.Reap(ctx, id)
		}
		w.post(func(*state) {
			if err != nil {
				m.step = before
				m.failures++
				m.retryAt = time.Now().Add(retryDelay(m.failures, releaseRetryFirst, releaseRetryMax))
				w.log.Error("Machine could not be released", "machine", id, "err", err)
				w.env.events.pod(s.pod, true, eventFailedKillPod, "Machine could not be released: "+err.Error())
				return
			}
			w.hold = nil
			if s.stage == stageFinished {
				w.env.images.Unpin(s.pod.UID)
			}
			lost := m.lost
			*m = machineState{generation: m.generation, path: m.path}
			for _, c := range s.containers {
				w.leftBehind(c, lost)
			}
			w.dirty = true
		})
	})
}

// leftBehind notes that a container's machine is gone. A run that was not seen to end
// ended with it: a start may have been answered after the machine was lost, and a
// kill need not have been.
func (w *worker) leftBehind(c *containerState, lost *loss) {
	switch c.step {
	case containerExited:
		c.drained = true
	case containerRunning, containerUnknown:
		reason, message := reasonStatusUnknown, "The container did not end before its machine was deleted"
		if lost != nil {
			reason, message = lost.reason, lost.message
		}
		w.ended(c, reason, message)
	case containerWaiting, containerStarting: // nothing has run
	}
}

// cleanup removes what is left of a pod without a machine: first its end is told to
// the API, then its files and its record go, last its object.
func (w *worker) cleanup(ctx context.Context) {
	del := w.s.deletion
	del.cleaning = true
	w.env.admission.forget(w.s.pod.UID) // before its object is gone and another pod is sent here
	final := w.s.pod.DeepCopy()
	final.Status = podStatus(&w.s, &w.published.Load().Status, w.env.nodeIP, time.Now())
	w.acts.Go(func() {
		err := w.env.cleanUp(ctx, final)
		w.post(func(*state) {
			if err == nil {
				w.advance(stageTerminated)
				return
			}
			del.cleaning = false
			del.failures++
			del.retryAt = time.Now().Add(retryDelay(del.failures, cleanupRetryFirst, cleanupRetryMax))
			w.log.Warn("Pod could not be removed", "err", err)
		})
	})
}
