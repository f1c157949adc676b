// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// Sizes of what a restored machine is given, as the protocol wants them.
const (
	entropyBytes    = 64
	challengeBytes  = 32
	machineIDDigits = 32
)

// Phase is a part of a restore.
type Phase string

// The phases of a restore, in order.
const (
	// PhaseRestore: the driver makes the machine and lets it run.
	PhaseRestore Phase = "restore"
	// PhaseAgent: the agent answers, is refreshed and proves itself.
	PhaseAgent Phase = "agent"
	// PhaseBoot: the driver makes a machine that boots.
	PhaseBoot Phase = "boot"
	// PhasePrepare: a template's work is done in a machine that was booted.
	PhasePrepare Phase = "prepare"
)

// RestoreOptions are what may differ between machines of one snapshot beside
// their configuration.
type RestoreOptions struct {
	// Hostname of the machine; empty is the machine's id.
	Hostname string
	// Phase is called when a phase begins, from the caller's goroutine. May be nil.
	Phase func(Phase)
}

// Timings of a restore.
type Timings struct {
	// Restore is from the call to a running machine: driver's restore and resume.
	Restore time.Duration
	// Agent is from there until the machine has proved itself.
	Agent time.Duration
	// Prepare is from there until a template's work was done; 0 for a restored machine.
	Prepare time.Duration
}

// Running is a restored machine with its own time, entropy, identity and network,
// that has proved to be one. Both belong to the caller, who closes Guest and
// deletes Machine, then calls Store.Forget.
type Running struct {
	Machine vm.Machine
	Guest   *guest.Client
	Timings Timings
}

// Restore makes a running machine from a snapshot. cfg has the shape and the kit of
// the snapshot and this machine's images. When it fails there is no machine, unless
// the error is a *LeftoverError.
//
// A snapshot that cannot be restored, or failed Options.RestoreFailures times in a row
// for no clear cause, is quarantined, whatever its files' digests say, and
// the error is vm.ErrSnapshotInvalid: release ref and call Ensure again, which
// builds it anew. Other errors: *DiskPressureError, vm.ErrInvalidConfig,
// vm.ErrAlreadyExists, vm.ErrNoSpace, vm.ErrHostNotReady, vm.ErrUnavailable, ctx.Err.
func (s *Store) Restore(ctx context.Context, ref *Ref, id string, cfg vm.Config, opts RestoreOptions) (running *Running, err error) {
	if err := s.writable(); err != nil {
		return nil, err
	}
	m := ref.set.manifest
	defer func() {
		if err != nil {
			err = fmt.Errorf("restore machine %q from snapshot %s: %w", id, shortKey(m.Key), err)
		}
	}()
	if err := vm.ValidateID(id); err != nil {
		return nil, err
	}
	if cfg.Shape != m.Shape || cfg.Kit.Digest != m.KitDigest || macOSDigest(cfg.MacOS) != m.MacOSDigest {
		return nil, fmt.Errorf("%w: shape %s and kit %s, the snapshot has %s and %s", vm.ErrInvalidConfig, cfg.Shape, cfg.Kit.Digest, m.Shape, m.KitDigest)
	}
	if err := s.checkDisk(0); err != nil {
		return nil, err
	}
	if s.isGone(ref.set) {
		return nil, fmt.Errorf("%w: it was quarantined meanwhile", vm.ErrSnapshotInvalid)
	}
	if r, taken := s.Reference(id); taken {
		return nil, fmt.Errorf("%w: it was restored from snapshot %s", vm.ErrAlreadyExists, shortKey(r.Key))
	}
	record := Reference{Machine: id, Key: m.Key, Instance: m.Instance}
	if err := s.refer(record); err != nil {
		return nil, err
	}
	running, machine, err := s.restore(ctx, ref.set, id, cfg, opts)
	restored := err == nil
	if restored {
		record.Proven = true
		if err = s.refer(record); err == nil {
			s.keepSealKey(m.Instance, ref.set.sealKey)
			s.forgetFailures(ref.set.manifest.Instance)
			return running, nil
		}
		err = errors.Join(err, ignoreClosed(running.Guest.Close()))
	}
	// The machine goes before the snapshot does: it may still need its files. A
	// machine that stays keeps its reference.
	var leftover error
	if machine != nil {
		leftover = s.deleteMachine(ctx, machine)
	}
	if leftover == nil {
		leftover = s.Forget(id)
	}
	if restored { // what failed is the host's disk, which says nothing about the snapshot
		return nil, errors.Join(err, leftover)
	}
	return nil, errors.Join(s.failed(ctx, ref.set, err), leftover)
}

// restore does the work; machine is what it made, also with an error.
func (s *Store) restore(ctx context.Context, set *set, id string, cfg vm.Config, opts RestoreOptions) (running *Running, machine vm.Machine, err error) {
	phase := func(p Phase) {
		if opts.Phase != nil {
			opts.Phase(p)
		}
	}
	start := time.Now()
	phase(PhaseRestore)
	if err := set.manifest.Template.checkDisks(disksOf(cfg)); err != nil {
		return nil, nil, err
	}
	machine, err = within(ctx, s.opts.Timeouts.Restore, func(ctx context.Context) (vm.Machine, error) {
		return s.driver.Restore(ctx, id, set.machineDir(), cfg)
	})
	if err != nil {
		return nil, nil, err
	}
	if err := s.call(ctx, machine.Resume); err != nil {
		return nil, machine, fmt.Errorf("resume: %w", err)
	}
	resumed := time.Now()
	phase(PhaseAgent)
	actx, cancel := context.WithTimeout(ctx, s.opts.Timeouts.Agent)
	defer cancel()
	client, err := s.Dial(actx, machine)
	if err != nil {
		return nil, machine, &agentError{err}
	}
	if err := s.refresh(actx, client, set.sealKey, id, opts.Hostname); err != nil {
		return nil, machine, errors.Join(&agentError{err}, ignoreClosed(client.Close()))
	}
	done := time.Now()
	return &Running{
		Machine: machine,
		Guest:   client,
		Timings: Timings{Restore: resumed.Sub(start), Agent: done.Sub(resumed)},
	}, machine, nil
}

// refresh gives a machine its own time, entropy, identity and network, in one call, and
// checks its proof, unless sealKey is nil.
func (s *Store) refresh(ctx context.Context, client *guest.Client, sealKey []byte, id, hostname string) error {
	if hostname == "" {
		hostname = id
	}
	random := make([]byte, entropyBytes+challengeBytes)
	_, _ = rand.Read(random) // never fails: it ends the process instead
	challenge := random[entropyBytes:]
	var resp *connect.Response[agentv1.RefreshResponse]
	network := s.opts.Network
	err := s.call(ctx, func(ctx context.Context) (err error) {
		resp, err = client.Agent.Refresh(ctx, connect.NewRequest(&agentv1.RefreshRequest{
			TimeUnixNano: s.opts.Now().UnixNano(),
			Entropy:      random[:entropyBytes],
			MachineId:    randomHex(machineIDDigits),
			Hostname:     hostname,
			Network:      network,
			Challenge:    challenge,
		}))
		return err
	})
	if err != nil {
		return fmt.Errorf("refresh guest: %w", err)
	}
	if sealKey != nil && !proves(sealKey, challenge, resp.Msg.GetProof()) {
		return ErrProof
	}
	return nil
}

// proves checks a proof: HMAC-SHA256 of the challenge under the seal key, which
// only memory that was sealed with it can compute. Pure, constant time.
func proves(sealKey, challenge, proof []byte) bool {
	mac := hmac.New(sha256.New, sealKey)
	mac.Write(challenge)
	return hmac.Equal(mac.Sum(nil), proof)
}

// agentError marks an error of a machine that runs but whose agent does not do
// what it should: perhaps the snapshot, perhaps the host.
type agentError struct{ err error }

func (e *agentError) Error() string { return e.err.Error() }
func (e *agentError) Unwrap() error { return e.err }

// verdict is what a failed restore says about the snapshot.
type verdict int

const (
	verdictNone    verdict = iota // about the caller, the disk, or nothing
	verdictSuspect                // perhaps: counts
	verdictInvalid                // certainly
)

// judge decides what a failed restore says about the snapshot. cancelled tells that
// the caller gave up. Pure.
func judge(err error, cancelled bool) verdict {
	var agent *agentError
	switch {
	case errors.Is(err, vm.ErrSnapshotInvalid), errors.Is(err, ErrProof), errors.Is(err, guest.ErrProtocolVersion):
		return verdictInvalid
	case cancelled:
		return verdictNone
	case errors.As(err, &agent):
		return verdictSuspect
	case errors.Is(err, vm.ErrNoSpace), errors.Is(err, vm.ErrInvalidConfig), errors.Is(err, vm.ErrAlreadyExists), errors.Is(err, vm.ErrLimitExceeded),
		errors.Is(err, vm.ErrHostNotReady), noSpace(err):
		return verdictNone
	}
	return verdictSuspect
}

// failed accounts for a failed restore and quarantines the snapshot when it is to
// blame. It returns the error for the caller.
func (s *Store) failed(ctx context.Context, set *set, err error) error {
	v := judge(err, ctx.Err() != nil)
	if v == verdictSuspect && s.countFailure(set.manifest.Instance) >= s.opts.RestoreFailures {
		v = verdictInvalid
	}
	if v != verdictInvalid {
		return err
	}
	if !errors.Is(err, vm.ErrSnapshotInvalid) {
		err = fmt.Errorf("%w: %w", vm.ErrSnapshotInvalid, err)
	}
	qctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.Timeouts.Call)
	defer cancel()
	return errors.Join(err, s.quarantine(qctx, set.manifest.Key, set.manifest.Instance, err.Error()))
}

func (s *Store) isGone(set *set) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return set.gone
}

// ignoreClosed drops the error of closing what is closed.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
