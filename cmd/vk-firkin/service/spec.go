// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package service

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Spec is what a service runs.
type Spec struct {
	// Program is the absolute path of vk-firkin, Args what it is run with.
	Program string
	Args    []string
	// Env is added to what the manager gives.
	Env map[string]string
	// StopTimeout is how long it may take to end when it is told to.
	StopTimeout time.Duration
	// StopBefore is the StopTimeout of the service in whose place this one comes.
	StopBefore time.Duration
	// Stderr is the file for what a program says that cannot log; launchd only, systemd has
	// its journal.
	Stderr string
}

// maxText bounds each text of a spec; the kernel's own limit for an argument is 128 KiB.
const maxText = 64 << 10

func (s Spec) validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !filepath.IsAbs(s.Program) {
		fault("program %q is not an absolute path", s.Program)
	}
	if s.StopTimeout < time.Second {
		fault("a time of %s to stop is too short", s.StopTimeout)
	}
	texts := append([]string{s.Program, s.Stderr}, s.Args...)
	for _, name := range slices.Sorted(maps.Keys(s.Env)) {
		if name == "" || strings.ContainsAny(name, "= \"'\\") {
			fault("%q is no name of a variable", name)
		}
		texts = append(texts, name, s.Env[name])
	}
	for _, text := range texts {
		if len(text) > maxText || !utf8.ValidString(text) || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			fault("%.100q is too long or has characters that a service cannot be given", text)
		}
	}
	return errors.Join(errs...)
}

// Manager is what runs services on a host.
type Manager string

// The managers.
const (
	Systemd Manager = "systemd"
	Launchd Manager = "launchd"
)

// ManagerOf is the manager of an operating system, in Go's words; empty for none.
func ManagerOf(goos string) Manager {
	switch goos {
	case "linux":
		return Systemd
	case "darwin":
		return Launchd
	}
	return ""
}

// Names of the service.
const (
	unitName     = "vk-firkin.service"
	launchdLabel = "dev.firkin.node"
)

// Target is where a service belongs.
type Target struct {
	Manager Manager
	// System: it runs from the host's start, as User. Else it belongs to User's own manager.
	System bool
	// User that it runs as, with its number and home.
	User string
	UID  int
	Home string
}

// Path is where the service is defined.
func (t Target) Path() string {
	switch {
	case t.Manager == Launchd && t.System:
		return filepath.Join("/Library/LaunchDaemons", launchdLabel+".plist")
	case t.Manager == Launchd:
		return filepath.Join(t.Home, "Library/LaunchAgents", launchdLabel+".plist")
	case t.System:
		return filepath.Join("/etc/systemd/system", unitName)
	}
	return filepath.Join(t.Home, ".config/systemd/user", unitName)
}

// environmentPath is where systemd reads the environment: anybody may ask it what a unit says, and
// nobody but the service's owner can read this file. Launchd has it in the definition.
func (t Target) environmentPath() string { return strings.TrimSuffix(t.Path(), ".service") + ".env" }

// Program is where the service's own copy of vk-firkin is kept, so that a build or an
// update does not change the file under a node that runs.
func (t Target) Program() string {
	if t.System {
		return "/usr/local/bin/vk-firkin"
	}
	return filepath.Join(t.Home, ".firkin/bin/vk-firkin")
}

// Logs are the commands that show what the service says, for people.
// Launchd has only files, which are named.
func (t Target) Logs(files ...string) string {
	switch {
	case t.Manager == Launchd:
		words := []string{"tail", "-n", "50"}
		for _, f := range files {
			words = append(words, shellQuote(f))
		}
		return strings.Join(words, " ")
	case t.System:
		return "journalctl -u vk-firkin -n 50"
	}
	return "journalctl --user -u vk-firkin -n 50"
}

// Start is the command that starts the service, for people.
func (t Target) Start() string {
	if t.Manager == Launchd {
		return "launchctl kickstart " + t.domain() + "/" + launchdLabel
	}
	return strings.Join(t.systemctl("start", "vk-firkin"), " ")
}

func (t Target) validate() error {
	switch {
	case t.Manager != Systemd && t.Manager != Launchd:
		return errors.New("this host has neither systemd nor launchd: run vk-firkin node by what it has, and let that end the node's own process only (docs/operations.md)")
	case t.User == "" || strings.ContainsAny(t.User, " \t\n%\\\"'$"):
		return fmt.Errorf("user %q: want the name of a user", t.User)
	case !t.System && !filepath.IsAbs(t.Home):
		return fmt.Errorf("user %q has no home folder, which is where its services are: use --system", t.User)
	}
	return nil
}

// Render is the definition of the service.
func Render(t Target, s Spec) ([]byte, error) {
	if err := errors.Join(t.validate(), s.validate()); err != nil {
		return nil, err
	}
	if t.Manager == Launchd {
		return launchdPlist(t, s), nil
	}
	return systemdUnit(t, s), nil
}
