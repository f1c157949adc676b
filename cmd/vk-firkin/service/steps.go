// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"
)

// Step is one thing that is done to a host: a file that is written or removed, or a command.
type Step struct {
	// Write is the path of a file, with its Content and Mode. Copy is written from the file
	// of that path instead.
	Write   string
	Content []byte
	Copy    string
	Mode    fs.FileMode
	// Folder is a folder with Mode that is made for Owner.
	Folder string
	Owner  int
	// Remove is the path of a file that need not exist.
	Remove string
	// Run is a command. MayFail: there may be nothing for it to do. Retry: it may have to
	// wait for what an earlier command began.
	Run            []string
	MayFail, Retry bool
	// Patience is how long it waits for a node's end.
	Patience time.Duration
	// Remedy is what to do when it fails.
	Remedy string
}

// String is the step as a person would type it.
func (s Step) String() string {
	switch {
	case s.Copy != "":
		return fmt.Sprintf("copy %s to %s", shellQuote(s.Copy), shellQuote(s.Write))
	case s.Write != "":
		return "write " + shellQuote(s.Write)
	case s.Folder != "":
		return "make folder " + shellQuote(s.Folder)
	case s.Remove != "":
		return "remove " + shellQuote(s.Remove)
	}
	words := make([]string, len(s.Run))
	for i, w := range s.Run {
		words[i] = shellQuote(w)
	}
	text := "run " + strings.Join(words, " ")
	if s.MayFail {
		text += " (it may fail)"
	}
	return text
}

// shellQuote is a word as a shell reads it.
func shellQuote(w string) string {
	if w != "" && !strings.ContainsFunc(w, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-:=@%+,", r)
	}) {
		return w
	}
	return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
}

// Install is how a service is installed, and how one that is there is upgraded: the
// program is copied from self when that is another file, and the service started anew when
// start says so. Machines go on meanwhile.
func Install(t Target, s Spec, self string, start bool) ([]Step, error) {
	definition, err := Render(t, s)
	if err != nil {
		return nil, err
	}
	var steps []Step
	if self != s.Program {
		steps = append(steps, Step{Write: s.Program, Copy: self, Mode: 0o755})
	}
	mode := fs.FileMode(0o600) // arguments and environment are nobody else's business
	patience := max(s.StopTimeout, s.StopBefore)
	if t.Manager == Systemd {
		if t.System {
			mode = 0o644 // who asks systemd is told all of it, and it warns of one that others cannot read
		}
		if len(s.Env) > 0 {
			steps = append(steps, Step{Write: t.environmentPath(), Content: systemdEnvironment(s.Env), Mode: 0o600})
		} else {
			steps = append(steps, Step{Remove: t.environmentPath()})
		}
	}
	steps = append(steps, Step{Write: t.Path(), Content: definition, Mode: mode})
	if t.Manager == Launchd {
		if s.Stderr != "" { // launchd makes no folders
			steps = append(steps, Step{Folder: filepath.Dir(s.Stderr), Mode: 0o700, Owner: t.UID})
		}
		if !start {
			return steps, nil
		}
		domain := t.domain()
		return append(steps,
			Step{Run: []string{"launchctl", "enable", domain + "/" + launchdLabel}, MayFail: true},
			Step{Run: []string{"launchctl", "bootout", domain + "/" + launchdLabel}, MayFail: true, Patience: patience},
			// The end of the one before may take a while after its command has.
			Step{Run: []string{"launchctl", "bootstrap", domain, t.Path()}, Retry: true, Remedy: t.sessionRemedy()}), nil
	}
	if !t.System {
		// Else the user's manager, and every machine with it, ends with the user's last session.
		steps = append(steps, Step{Run: []string{"loginctl", "enable-linger", t.User},
			Remedy: "let an administrator run: loginctl enable-linger " + t.User + ", or install as root with --system --run-as " + t.User})
	}
	remedy := t.sessionRemedy()
	steps = append(steps,
		Step{Run: t.systemctl("daemon-reload"), Remedy: remedy},
		Step{Run: t.systemctl("enable", unitName), Remedy: remedy})
	if start {
		steps = append(steps, Step{Run: t.systemctl("restart", unitName), Patience: patience, Remedy: "see " + t.Logs()})
	}
	return steps, nil
}

// Uninstall is how a service is removed that may take a time to stop. Machines, state and the program's
// copy stay.
func Uninstall(t Target, stop time.Duration) ([]Step, error) {
	if err := t.validate(); err != nil {
		return nil, err
	}
	if t.Manager == Launchd {
		return []Step{
			{Run: []string{"launchctl", "bootout", t.domain() + "/" + launchdLabel}, MayFail: true, Patience: stop},
			{Remove: t.Path()},
		}, nil
	}
	return []Step{
		{Run: t.systemctl("disable", "--now", unitName), Patience: stop, Remedy: t.sessionRemedy()},
		{Remove: t.Path()},
		{Remove: t.environmentPath()},
		{Run: t.systemctl("daemon-reload"), Remedy: t.sessionRemedy()},
	}, nil
}

func (t Target) domain() string {
	if t.System {
		return "system"
	}
	return fmt.Sprintf("gui/%d", t.UID)
}

func (t Target) systemctl(args ...string) []string {
	if t.System {
		return append([]string{"systemctl"}, args...)
	}
	return append([]string{"systemctl", "--user"}, args...)
}

// sessionRemedy is what to do when the manager cannot be spoken to.
func (t Target) sessionRemedy() string {
	switch {
	case t.Manager == Launchd && !t.System:
		return "log in as " + t.User + " at the screen of this Mac, or let it log in by itself (docs/macos.md); launchctl print gui/" + fmt.Sprint(t.UID) + " says whether there is a session"
	case t.Manager == Systemd && !t.System:
		return "run it in a session of " + t.User + " (ssh or the console, not su or sudo), whose manager systemctl --user speaks to; or install as root with --system --run-as " + t.User
	}
	return "run it as root"
}
