// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package simulator

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// Options say what to simulate.
type Options struct {
	// HostDir is the simulated Mac. It is made if it does not exist.
	HostDir string
	// Engine executes guests: NoGuest or QEMU.
	Engine Engine
	// Logger gets what the framework would not say: which field of a configuration
	// differs from the saved one. Nil: nobody does.
	Logger *slog.Logger
}

// simulator is one process's framework.
type simulator struct {
	dir    string
	engine Engine
	log    *slog.Logger
}

var _ framework.Framework = (*simulator)(nil)

// Open opens the simulated Mac in opts.HostDir.
func Open(opts Options) (framework.Framework, error) {
	switch {
	case opts.HostDir == "":
		return nil, errors.New("open simulator: no host directory")
	case opts.Engine == nil:
		return nil, errors.New("open simulator: no engine")
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(opts.HostDir, 0o700); err != nil {
		return nil, fmt.Errorf("open simulator: %w", err)
	}
	_, err := ReadHost(opts.HostDir)
	if errors.Is(err, fs.ErrNotExist) {
		err = ChangeHost(opts.HostDir, func(*Host) {}) // which makes one
	}
	if err != nil {
		return nil, fmt.Errorf("open simulator: %w", err)
	}
	if err := opts.Engine.ready(); err != nil {
		return nil, fmt.Errorf("open simulator: %w", err)
	}
	return &simulator{dir: opts.HostDir, engine: opts.Engine, log: opts.Logger}, nil
}

// Host is part of framework.Framework.
func (s *simulator) Host() (framework.Host, error) {
	leave, err := s.enter(CallHost)
	if err != nil {
		return framework.Host{}, err
	}
	h, err := ReadHost(s.dir)
	if err := leave(err); err != nil {
		return framework.Host{}, err
	}
	return framework.Host{
		OSVersion:    h.OSVersion,
		OSBuild:      h.OSBuild,
		ID:           h.ID + "/" + h.User,
		ScreenLocked: h.ScreenLocked,
		Accelerator:  "simulator",
		SingleConn:   s.engine.singleConn(),
		SaveRestore:  h.savesAndRestores(),
	}, nil
}

// New is part of framework.Framework.
func (s *simulator) New(cfg framework.Configuration) (framework.Machine, error) {
	leave, err := s.enter(CallNew)
	if err != nil {
		return nil, err
	}
	m, err := s.newMachine(cfg)
	if lerr := leave(err); lerr != nil {
		if err == nil {
			m.release()
		}
		return nil, lerr
	}
	return m, nil
}
