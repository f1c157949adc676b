// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package simulator

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// shape is what must be equal in the machine that was saved and in the one that it is
// restored into. If it is not, the restore fails with CodeRestore and "invalid argument"
// (header of restoreMachineStateFromURL), which does not say what differs.
type shape struct {
	// Engine is the simulator's own: what one engine saved, no other loads.
	Engine  string            `json:"engine"`
	GuestOS framework.GuestOS `json:"guestOS"`
	// Measured, 2 of 2 runs each (kernova 2026-09-30): another machine identifier, CPU
	// count, memory size, number of disks, capacity of a disk at its position, a network
	// or console device more or less.
	MachineIdentifier []byte      `json:"machineIdentifier"`
	CPUs              uint        `json:"cpus"`
	MemoryBytes       uint64      `json:"memoryBytes"`
	Disks             []diskShape `json:"disks"`
	Console           bool        `json:"console"`
	// Measured, 2 of 2 runs (kernova 2026-09-23).
	MAC string `json:"mac"`
	// Unproven on hardware, one by one. They are parts of the configuration, which must
	// be "compatible" (header).
	Entropy       bool   `json:"entropy"`
	HardwareModel []byte `json:"hardwareModel,omitempty"`
	Kernel        string `json:"kernel,omitempty"`
	Initramfs     string `json:"initramfs,omitempty"`
	CommandLine   string `json:"commandLine,omitempty"`
}

type diskShape struct {
	Bytes int64 `json:"bytes"`
	// ReadOnly and Serial are unproven on hardware: disks of one capacity may be swapped
	// (kernova 2026-09-30), for USB disks another identifier fails or not by their kind.
	ReadOnly bool   `json:"readOnly"`
	Serial   string `json:"serial"`
}

// shapeOf describes a configuration whose disks are open.
func shapeOf(engine string, c framework.Configuration, disks []held) (shape, error) {
	s := shape{
		Engine:            engine,
		GuestOS:           c.GuestOS,
		MachineIdentifier: c.MachineIdentifier,
		CPUs:              c.CPUs,
		MemoryBytes:       c.MemoryBytes,
		Console:           hasConsole(c),
		MAC:               c.MAC.String(),
		Entropy:           c.Entropy,
		HardwareModel:     c.HardwareModel,
		CommandLine:       c.CommandLine,
	}
	for i, d := range c.Disks {
		info, err := disks[i].file.Stat()
		if err != nil {
			return shape{}, err
		}
		s.Disks = append(s.Disks, diskShape{info.Size(), d.ReadOnly, d.Serial})
	}
	var err error
	if s.Kernel, err = contentDigest(c.Kernel); err != nil {
		return shape{}, err
	}
	s.Initramfs, err = contentDigest(c.Initramfs)
	return s, err
}

func hasConsole(c framework.Configuration) bool { return c.ConsoleIn != nil || c.ConsoleOut != nil }

// difference names the first thing in which t is not s. Empty: none.
func (s shape) difference(t shape) string {
	switch {
	case s.Engine != t.Engine:
		return "engine"
	case s.GuestOS != t.GuestOS:
		return "guest OS"
	case !bytes.Equal(s.MachineIdentifier, t.MachineIdentifier):
		return "machine identifier"
	case s.CPUs != t.CPUs:
		return "CPU count"
	case s.MemoryBytes != t.MemoryBytes:
		return "memory size"
	case len(s.Disks) != len(t.Disks):
		return "number of disks"
	case !slices.Equal(s.Disks, t.Disks):
		for i := range s.Disks {
			if s.Disks[i] != t.Disks[i] {
				return fmt.Sprintf("disk %d: %+v, not %+v", i, t.Disks[i], s.Disks[i])
			}
		}
		return "disks"
	case s.Console != t.Console:
		return "console"
	case s.MAC != t.MAC:
		return "MAC address"
	case s.Entropy != t.Entropy:
		return "entropy device"
	case !bytes.Equal(s.HardwareModel, t.HardwareModel):
		return "hardware model"
	case s.Kernel != t.Kernel:
		return "kernel"
	case s.Initramfs != t.Initramfs:
		return "initramfs"
	case s.CommandLine != t.CommandLine:
		return "command line"
	}
	return ""
}

// digests remembers the digests of boot files, of which all machines have the same few.
var digests struct {
	sync.Mutex
	of map[string]string // guarded by the mutex; by identity, size and time of the file
}

// contentDigest digests a file. The empty path has the empty digest.
func contentDigest(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", invalid("The boot loader is invalid: %v.", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", invalid("The boot loader is invalid: %v.", err)
	}
	key := fmt.Sprintf("%s %d %s", fileKey(info), info.Size(), info.ModTime().Format(time.RFC3339Nano))
	digests.Lock()
	known, ok := digests.of[key]
	digests.Unlock()
	if ok {
		return known, nil
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", invalid("The boot loader is invalid: %v.", err)
	}
	digest := hex.EncodeToString(sum.Sum(nil))
	digests.Lock()
	defer digests.Unlock()
	if digests.of == nil {
		digests.of = map[string]string{}
	}
	digests.of[key] = digest
	return digest, nil
}
