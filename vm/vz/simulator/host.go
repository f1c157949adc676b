// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package simulator

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const (
	hostFile = "host.json"
	lockFile = "lock"
)

// Host is the state of a simulated Mac that its machines share: the content of host.json
// in the host's directory. Tests change it with ChangeHost while machines run.
type Host struct {
	// OSVersion and OSBuild are as sw_vers prints them.
	OSVersion string `json:"osVersion"`
	OSBuild   string `json:"osBuild"`
	// ID is the hardware, User the account that machines run under.
	ID   string `json:"id"`
	User string `json:"user"`
	// ScreenLocked: neither save nor restore gets at its key.
	ScreenLocked bool `json:"screenLocked"`
	// GUISession: a user is logged in at the console.
	GUISession bool `json:"guiSession"`
	// SaveRestore: Apple silicon. The OS version counts besides.
	SaveRestore bool `json:"saveRestore"`
	// SavesEntropy: this version can save a machine with an entropy device.
	SavesEntropy bool `json:"savesEntropy"`
	// RestoresAcrossBuilds: this version reads files of older builds.
	RestoresAcrossBuilds bool `json:"restoresAcrossBuilds"`
	// RestoresIdentifierInUse: a machine is restored although another one with its
	// identifier runs.
	RestoresIdentifierInUse bool `json:"restoresIdentifierInUse"`
	// MacOSGuests may run at once.
	MacOSGuests int `json:"macOSGuests"`
	// LeaksSlots: a slot for a macOS guest stays taken when its machine has ended (UTM
	// #5563, macosvm #16), until Reboot. LeakedSlots are those taken so.
	LeaksSlots  bool  `json:"leaksSlots"`
	LeakedSlots []int `json:"leakedSlots,omitempty"`
	// MaxCPUs and MaxMemoryBytes of one machine.
	MaxCPUs        uint   `json:"maxCPUs"`
	MaxMemoryBytes uint64 `json:"maxMemoryBytes"`
	// FreeBytes is how large a saved file can become. Nil: as the real disk allows.
	FreeBytes *int64 `json:"freeBytes,omitempty"`
	// Boots counts.
	Boots int `json:"boots"`
	// Faults are injected into calls. See Fault.
	Faults []Fault `json:"faults,omitempty"`
}

// defaultHost is a Mac on which everything works.
func defaultHost() Host {
	return Host{
		OSVersion:      "15.5",
		OSBuild:        "24F74",
		ID:             "SIMULATED-" + strings.ToUpper(randomHex(8)),
		User:           "501",
		GUISession:     true,
		SaveRestore:    true,
		MacOSGuests:    2,
		MaxCPUs:        16,
		MaxMemoryBytes: 64 << 30,
		Boots:          1,
	}
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// ReadHost reads the state of the simulated Mac in dir.
func ReadHost(dir string) (Host, error) {
	text, err := os.ReadFile(filepath.Join(dir, hostFile))
	if err != nil {
		return Host{}, fmt.Errorf("read simulated host: %w", err)
	}
	var h Host
	if err := json.Unmarshal(text, &h); err != nil {
		return Host{}, fmt.Errorf("read simulated host: %w", err)
	}
	return h, nil
}

// ChangeHost changes the state of the simulated Mac in dir, which every process that
// simulates there sees from its next call on. It is safe for concurrent use by
// processes. The first change of a directory begins with a Mac on which all works.
func ChangeHost(dir string, change func(*Host)) error {
	unlock, err := lockHost(dir)
	if err != nil {
		return fmt.Errorf("change simulated host: %w", err)
	}
	defer unlock()
	return changeLocked(dir, change)
}

// changeLocked is ChangeHost for one who holds the host's lock.
func changeLocked(dir string, change func(*Host)) error {
	h, err := ReadHost(dir)
	if errors.Is(err, fs.ErrNotExist) {
		h = defaultHost()
	} else if err != nil {
		return err
	}
	change(&h)
	text, err := json.MarshalIndent(h, "", "  ")
	if err != nil {
		return fmt.Errorf("change simulated host: %w", err)
	}
	// Written under another name, so that nobody reads half of it. The lock is held: one
	// name is enough.
	name := filepath.Join(dir, hostFile)
	if err := os.WriteFile(name+".new", append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("change simulated host: %w", err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("change simulated host: %w", err)
	}
	return nil
}

// Reboot frees the leaked slots. The processes that run machines are the caller's to
// end.
func Reboot(dir string) error {
	return ChangeHost(dir, func(h *Host) {
		h.Boots++
		h.LeakedSlots = nil
	})
}

// savesAndRestores: from macOS 14, on Apple silicon (header: API_AVAILABLE(macos(14.0)),
// declared for arm64 only).
func (h Host) savesAndRestores() bool {
	major, _, _ := strings.Cut(h.OSVersion, ".")
	n, err := strconv.Atoi(major)
	return err == nil && n >= 14 && h.SaveRestore
}

// olderBuild compares builds like "24F74": a major version, a letter, a number. Builds
// that do not look like that are compared as text.
func olderBuild(a, b string) bool {
	ma, la, na, aok := splitBuild(a)
	mb, lb, nb, bok := splitBuild(b)
	switch {
	case !aok || !bok:
		return a < b
	case ma != mb:
		return ma < mb
	case la != lb:
		return la < lb
	default:
		return na < nb
	}
}

func splitBuild(build string) (major int, letter byte, number int, ok bool) {
	i := strings.IndexFunc(build, func(r rune) bool { return r < '0' || r > '9' })
	if i <= 0 || i == len(build)-1 {
		return 0, 0, 0, false
	}
	major, err := strconv.Atoi(build[:i])
	if err != nil {
		return 0, 0, 0, false
	}
	// A beta's build ends with a letter: 24A5264n.
	number, err = strconv.Atoi(strings.TrimRight(build[i+1:], "abcdefghijklmnopqrstuvwxyz"))
	return major, build[i], number, err == nil
}

func (h Host) leaked(slot int) bool { return slices.Contains(h.LeakedSlots, slot) }
