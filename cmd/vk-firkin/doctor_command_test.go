// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/doctor"
	"github.com/vk-firkin/vk-firkin/vm/vz/mac"
)

var update = flag.Bool("update", false, "write the golden files")

// fakeMac is a Mac by its facts.
type fakeMac struct {
	doctor.Host
	facts    mac.Facts
	machines int
	free     int64
	memory   string
	writable error
}

func (m *fakeMac) Run(context.Context, string, ...string) (string, error) { return m.memory, nil }
func (m *fakeMac) Writable(string) error                                  { return m.writable }
func (m *fakeMac) FreeBytes(string) (int64, error)                        { return m.free, nil }
func (m *fakeMac) User() string                                           { return "ci" }
func (m *fakeMac) Mac(context.Context, string) mac.Facts                  { return m.facts }
func (m *fakeMac) Machines(string) (int, error)                           { return m.machines, nil }

func fact[T any](v T) mac.Known[T] { return mac.Known[T]{Value: v} }

// TestDoctorOnAMac shows what an operator sees on a Mac that is set up and on one that
// is not.
func TestDoctorOnAMac(t *testing.T) {
	healthy := &fakeMac{free: 300 << 30, memory: "34359738368\n", machines: 3, facts: mac.Facts{
		OSVersion: fact("15.6.1"), OSBuild: fact("24G90"), AppleSilicon: fact(true), Hypervisor: fact(true),
		Signature:  fact(mac.Signature{Path: "/Users/ci/vk-firkin/bin/vk-firkin", Valid: true, Virtualization: true}),
		ScreenLock: fact(mac.ScreenLock{Off: true}), ScreenSaver: fact(time.Duration(0)), FileSystem: fact("apfs"),
		State: mac.State{
			UID: 501, GUISession: fact(true), Screen: fact(mac.Screen{OnConsole: true, ConsoleUser: "ci"}), Keychain: fact(mac.Keychain{Unlocked: true}),
			Sleep: fact(map[string]mac.Sleep{"AC Power": {}}), Guests: fact(make([]mac.Process, 3)), GuestLimit: fact(128),
		},
	}}
	sick := &fakeMac{free: 5 << 30, memory: "8589934592\n", machines: 1, writable: os.ErrPermission, facts: mac.Facts{
		OSVersion: fact("13.7.8"), OSBuild: fact("22H730"), AppleSilicon: fact(true), Hypervisor: fact(false),
		Signature:  fact(mac.Signature{Path: "/Users/ci/vk firkin/bin/vk-firkin", Valid: true}),
		ScreenLock: fact(mac.ScreenLock{Delay: 5 * time.Second}), ScreenSaver: fact(20 * time.Minute), FileSystem: fact("exfat"),
		State: mac.State{
			UID: 501, GUISession: fact(false), Screen: fact(mac.Screen{Locked: true, ConsoleUser: "eve"}),
			Keychain: mac.Known[mac.Keychain]{Err: errors.New("macOS did not answer in time; it may be asking for the keychain's password on the screen")},
			Sleep:    fact(map[string]mac.Sleep{"AC Power": {System: 1, Display: 10, Disk: 10, PowerNap: true}}),
			Guests:   fact(make([]mac.Process, 4)), GuestLimit: fact(128),
		},
	}}
	for name, c := range map[string]struct {
		mac       *fakeMac
		framework error
		kit       error
		failed    bool
	}{
		"healthy": {healthy, nil, nil, false},
		"sick":    {sick, errors.New("no Virtualization.framework in this program: built without cgo"), errors.New("kit.json: no such file"), true},
	} {
		t.Run(name, func(t *testing.T) {
			findings := doctor.Examine(t.Context(), c.mac, doctor.Options{OS: "darwin", Arch: "arm64", StateDir: "/Users/ci/.firkin/state", CacheDir: "/Users/ci/.firkin/cache",
				KitDir: "/Users/ci/vk-firkin/bin/guest/arm64", VerifyKit: func(string) error { return c.kit }, Framework: func() error { return c.framework }})
			if doctor.Failed(findings) != c.failed {
				t.Errorf("failed: %v", !c.failed)
			}
			var out bytes.Buffer
			if err := printFindings(&out, findings); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", "doctor-mac-"+name+".txt")
			if *update {
				if err := os.WriteFile(file, out.Bytes(), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(out.Bytes(), want) {
				t.Errorf("got:\n%s\nwant:\n%s\n(go test -update writes it)", out.Bytes(), want)
			}
		})
	}
}
