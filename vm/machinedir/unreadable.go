// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package machinedir

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/process"
)

// unreadable is a vm.Unreadable.
type unreadable[M comparable] struct {
	registry    *Registry[M]
	id, program string
	cause       error
	config      vm.Config
}

var (
	_ vm.Unreadable = (*unreadable[int])(nil)
	_ vm.Describer  = (*unreadable[int])(nil)
)

// Unreadable is the machine of a directory whose record, of this name, cannot be read, of
// which cause, a vm.ErrUnreadable, is the error. program is what such a machine's process
// runs.
func (r *Registry[M]) Unreadable(id, record, program string, cause error) vm.Unreadable {
	m := &unreadable[M]{registry: r, id: id, program: program, cause: cause}
	// What it was made of is the same in all versions, as far as it is there: it is charged
	// with that. Nothing else depends on it.
	if data, err := ReadRecord(r.FS, r.Dir(id), record); err == nil {
		var guess struct {
			Config vm.Config `json:"config"`
		}
		if json.Unmarshal(data, &guess) == nil && guess.Config.Shape.Validate() == nil {
			m.config = guess.Config
		}
	}
	return m
}

func (m *unreadable[M]) fail(doing string) error {
	return fmt.Errorf("%s machine %q: %w", doing, m.id, m.cause)
}

// ID is part of vm.Machine.
func (m *unreadable[M]) ID() string { return m.id }

// Unreadable is part of vm.Unreadable.
func (m *unreadable[M]) Unreadable() error { return m.cause }

// Config is part of vm.Describer.
func (m *unreadable[M]) Config() vm.Config { return m.config }

// State is part of vm.Machine.
func (m *unreadable[M]) State(context.Context) (vm.State, error) { return "", m.fail("ask") }

// Resume is part of vm.Machine.
func (m *unreadable[M]) Resume(context.Context) error { return m.fail("resume") }

// DialGuest is part of vm.Machine.
func (m *unreadable[M]) DialGuest(context.Context, uint32) (net.Conn, error) {
	return nil, m.fail("dial guest of")
}

// Stop is part of vm.Machine.
func (m *unreadable[M]) Stop(context.Context, time.Duration) error { return m.fail("stop") }

// Wait is part of vm.Machine.
func (m *unreadable[M]) Wait(context.Context) (vm.Exit, error) { return vm.Exit{}, m.fail("wait for") }

// Delete is part of vm.Machine.
func (m *unreadable[M]) Delete(ctx context.Context) error {
	err := ctx.Err()
	if err == nil {
		err = m.registry.removeUnreadable(m.id, m.program)
	}
	if err != nil {
		return fmt.Errorf("delete machine %q: %w", m.id, err)
	}
	return nil
}

// removeUnreadable is Remove where nothing but the place of a process tells that it is the
// machine's. One that works there and runs another program may be anybody's: a shell that
// looks around, a hypervisor of another version. Then nothing is done.
func (r *Registry[M]) removeUnreadable(id, program string) error {
	found, err := process.In(r.Dir(id), "")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%w: which processes are its own cannot be told: %w", vm.ErrUnavailable, err)
	}
	var strangers []string
	var first int
	for _, p := range found {
		i := p.Identity()
		p.Close()
		if strings.TrimSuffix(i.Executable, " (deleted)") == program {
			continue
		}
		if first == 0 {
			first = i.PID
		}
		strangers = append(strangers, fmt.Sprintf("%d (%s)", i.PID, i.Executable))
	}
	if len(strangers) > 0 {
		return fmt.Errorf("%w: process %s works in its directory, and is not known to be its own, which would be %s: end it first (kill %d)",
			vm.ErrUnavailable, strings.Join(strangers, ", "), program, first)
	}
	return r.Remove(id, program)
}
