// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// templateHostname is the hostname of a machine while its template's commands run.
const templateHostname = "template"

// bootBuilder boots the machine that a base is saved from, and has its agent prepare for
// the save. No connection is left. A machine that exists is returned also with an error;
// step is what failed.
func (s *Store) bootBuilder(ctx context.Context, id string, cfg vm.Config, sealKey []byte) (m vm.Machine, step string, err error) {
	m, err = within(ctx, s.opts.Timeouts.Create, func(ctx context.Context) (vm.Machine, error) {
		return s.driver.Create(ctx, id, cfg)
	})
	if err != nil {
		return nil, "create machine", err
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeouts.Boot)
	defer cancel()
	client, err := s.Dial(ctx, m)
	if err != nil {
		return m, "boot guest", err
	}
	defer func() { err = errors.Join(err, ignoreClosed(client.Close())) }()
	random := make([]byte, entropyBytes+challengeBytes)
	_, _ = rand.Read(random) // never fails: it ends the process instead
	// No network: what is in force now would be in every machine's memory.
	err = s.call(ctx, func(ctx context.Context) error {
		_, err := client.Agent.Refresh(ctx, connect.NewRequest(&agentv1.RefreshRequest{
			TimeUnixNano: s.opts.Now().UnixNano(),
			Entropy:      random[:entropyBytes],
			MachineId:    randomHex(machineIDDigits),
			Hostname:     "firkin",
			Challenge:    random[entropyBytes:], // the protocol wants one; nothing is sealed yet
		}))
		return err
	})
	if err != nil {
		return m, "refresh guest", err
	}
	return m, "seal guest", s.seal(ctx, client, &agentv1.SealRequest{Key: sealKey})
}

// prepareBuilder restores the machine that a template is saved from and prepares it.
// Otherwise it is as bootBuilder.
func (s *Store) prepareBuilder(ctx context.Context, id string, cfg vm.Config, sealKey []byte, spec Spec, base *Ref) (m vm.Machine, step string, err error) {
	running, m, err := s.restore(ctx, base.set, id, cfg, RestoreOptions{Hostname: templateHostname})
	if err != nil {
		return m, "restore base", s.failed(ctx, base.set, err)
	}
	s.forgetFailures(base.set.manifest.Instance)
	defer func() { err = errors.Join(err, ignoreClosed(running.Guest.Close())) }()
	if err := s.prepareGuest(ctx, m, running.Guest, spec); err != nil {
		return m, stepPrepare, err
	}
	// The page cache was filled on purpose.
	return m, "seal guest", s.seal(ctx, running.Guest, &agentv1.SealRequest{Key: sealKey, KeepCaches: true})
}

// bootTemplate boots the machine that a template without a base is saved from, a macOS
// guest, and prepares it. Otherwise it is as bootBuilder.
func (s *Store) bootTemplate(ctx context.Context, id string, cfg vm.Config, sealKey []byte, spec Spec) (m vm.Machine, step string, err error) {
	running, m, err := s.boot(ctx, id, Spec{Shape: spec.Shape, GuestOS: spec.GuestOS, MacOS: spec.MacOS}, cfg, RestoreOptions{Hostname: templateHostname})
	if err != nil {
		return m, "boot guest", err
	}
	defer func() { err = errors.Join(err, ignoreClosed(running.Guest.Close())) }()
	if err := s.prepareGuest(ctx, m, running.Guest, spec); err != nil {
		return m, stepPrepare, err
	}
	return m, "seal guest", s.seal(ctx, running.Guest, &agentv1.SealRequest{Key: sealKey, KeepCaches: true})
}

// stepPrepare is what BuildError says when a template's own work failed.
const stepPrepare = "prepare"

func (s *Store) seal(ctx context.Context, client *guest.Client, req *agentv1.SealRequest) error {
	return s.call(ctx, func(ctx context.Context) error {
		_, err := client.Agent.Seal(ctx, connect.NewRequest(req))
		return err
	})
}

// prepareGuest has the template's work done, and ends it when the machine ends.
func (s *Store) prepareGuest(ctx context.Context, m vm.Machine, client *guest.Client, spec Spec) error {
	if spec.Template == nil || spec.Template.Prepare == nil {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if exit, err := m.Wait(ctx); err == nil {
			cancel(fmt.Errorf("the machine ended (%s %.200q): %w", exit.Reason, exit.Detail, vm.ErrInvalidState))
		}
	}()
	err := spec.Template.Prepare(ctx, client)
	cause := context.Cause(ctx)
	cancel(nil)
	<-watched
	if err == nil {
		return cause
	}
	// A machine whose disk cannot grow on the host is stopped by some drivers: its guest just
	// does not answer any more.
	if pressure := s.checkDisk(0); pressure != nil {
		return errors.Join(err, pressure)
	}
	return err
}
