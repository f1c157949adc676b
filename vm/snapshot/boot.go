// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// coldKey is the key in the references of machines that were not restored from a
// snapshot. They have one for its mark that they are ready to be used.
var coldKey = strings.Repeat("0", keyLength)

// Cold tells whether the machine was booted and not restored.
func (r Reference) Cold() bool { return r.Key == coldKey }

// Boot makes a machine without any snapshot: it boots one, gives it time, entropy,
// identity and network, and does a template's work in it. cfg is the machine's, spec what
// it is to become. It has a reference as a restored machine has.
//
// Errors: those of the driver's Create; vm.ErrUnavailable when the guest does not come up;
// what TemplateSpec.Prepare returns; vm.ErrNoSpace below the disk floor; ErrReadOnly,
// ErrClosed. After an error there is no machine, unless the error is a *LeftoverError.
func (s *Store) Boot(ctx context.Context, id string, spec Spec, cfg vm.Config, opts RestoreOptions) (running *Running, err error) {
	if err := s.writable(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("boot machine %q of %s: %w", id, spec, err)
		}
	}()
	if s.driver == nil {
		return nil, fmt.Errorf("%w: no driver", ErrReadOnly)
	}
	if err := errors.Join(vm.ValidateID(id), spec.Validate(s.features)); err != nil {
		return nil, err
	}
	if cfg.Shape != spec.Shape || cfg.Kit.Digest != spec.Kit.Digest || cfg.GuestOS != spec.GuestOS || macOSDigest(cfg.MacOS) != macOSDigest(spec.MacOS) {
		return nil, fmt.Errorf("%w: shape %s and kit %s, want %s and %s", vm.ErrInvalidConfig, cfg.Shape, cfg.Kit.Digest, spec.Shape, spec.Kit.Digest)
	}
	if err := s.checkDisk(0); err != nil {
		return nil, err
	}
	if r, taken := s.Reference(id); taken {
		return nil, fmt.Errorf("%w: it was made from snapshot %s", vm.ErrAlreadyExists, shortKey(r.Key))
	}
	record := Reference{Machine: id, Key: coldKey, Instance: randomHex(instanceLength)}
	if err := s.refer(record); err != nil {
		return nil, err
	}
	running, machine, err := s.boot(ctx, id, spec, cfg, opts)
	if err == nil {
		record.Proven = true
		if err = s.refer(record); err == nil {
			return running, nil
		}
		err = errors.Join(err, ignoreClosed(running.Guest.Close()))
	}
	var leftover error
	if machine != nil {
		leftover = s.deleteMachine(ctx, machine)
	}
	if leftover == nil {
		leftover = s.Forget(id)
	}
	return nil, errors.Join(err, leftover)
}

// boot does it. A machine that exists is returned also with an error.
func (s *Store) boot(ctx context.Context, id string, spec Spec, cfg vm.Config, opts RestoreOptions) (running *Running, machine vm.Machine, err error) {
	phase := func(p Phase) {
		if opts.Phase != nil {
			opts.Phase(p)
		}
	}
	start := time.Now()
	phase(PhaseBoot)
	machine, err = within(ctx, s.opts.Timeouts.Create, func(ctx context.Context) (vm.Machine, error) {
		return s.driver.Create(ctx, id, cfg)
	})
	if err != nil {
		return nil, nil, err
	}
	created := time.Now()
	phase(PhaseAgent)
	limit := s.opts.Timeouts.Boot
	if spec.GuestOS == vm.GuestMacOS {
		limit = s.opts.Timeouts.MacOSBoot
	}
	bctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	client, err := s.Dial(bctx, machine)
	if err != nil {
		return nil, machine, err
	}
	if err := s.refresh(bctx, client, nil, id, opts.Hostname); err != nil {
		return nil, machine, errors.Join(err, ignoreClosed(client.Close()))
	}
	answered := time.Now()
	if spec.Template != nil {
		phase(PhasePrepare)
		if err := s.prepareGuest(ctx, machine, client, spec); err != nil {
			return nil, machine, errors.Join(err, ignoreClosed(client.Close()))
		}
	}
	return &Running{
		Machine: machine,
		Guest:   client,
		Timings: Timings{Restore: created.Sub(start), Agent: answered.Sub(created), Prepare: time.Since(answered)},
	}, machine, nil
}
