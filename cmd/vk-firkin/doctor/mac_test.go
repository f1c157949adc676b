// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package doctor_test

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/doctor"
	"github.com/vk-firkin/vk-firkin/vm/vz/mac"
)

func known[T any](v T) mac.Known[T] { return mac.Known[T]{Value: v} }

func not[T any]() mac.Known[T] { return mac.Known[T]{Err: errors.New("no answer")} }

// macHost is a Mac on which all is well.
func macHost() *host {
	h := linuxHost()
	h.programs = map[string]string{"sysctl -n hw.memsize": "17179869184\n"}
	h.facts = &mac.Facts{
		OSVersion: known("15.10"), OSBuild: known("24F74"), AppleSilicon: known(true), Hypervisor: known(true),
		Signature:  known(mac.Signature{Path: "/usr/local/bin/vk-firkin", Valid: true, Virtualization: true}),
		ScreenLock: known(mac.ScreenLock{Off: true}), ScreenSaver: known(time.Duration(0)), FileSystem: known("apfs"),
		State: mac.State{
			UID: 501, GUISession: known(true), Screen: known(mac.Screen{OnConsole: true, ConsoleUser: "tina"}),
			Keychain: known(mac.Keychain{Unlocked: true}), Sleep: known(map[string]mac.Sleep{"AC Power": {}}),
			Guests: known([]mac.Process{{PID: 7, Parent: 1}}), GuestLimit: known(128),
		},
	}
	h.machines = 1
	return h
}

func guests(n int) mac.Known[[]mac.Process] { return known(make([]mac.Process, n)) }

func TestExamineMac(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*host, *doctor.Options)
		want   string // the findings that are not ok: name=status
		found  string // in what was found
		remedy string // in one of the remedies
	}{
		"all is well":           {func(*host, *doctor.Options) {}, "", "macOS 15.10 (24F74)", ""},
		"exactly macOS 14":      {func(h *host, _ *doctor.Options) { h.facts.OSVersion = known("14") }, "", "", ""},
		"macOS 26":              {func(h *host, _ *doctor.Options) { h.facts.OSVersion = known("26.0") }, "", "", ""},
		"an old macOS":          {func(h *host, _ *doctor.Options) { h.facts.OSVersion = known("13.7.8") }, "macos=fail", "13.7.8", "softwareupdate"},
		"a strange macOS":       {func(h *host, _ *doctor.Options) { h.facts.OSVersion = known("Tahoe") }, "macos=warn", "", "macOS 14"},
		"an unknown macOS":      {func(h *host, _ *doctor.Options) { h.facts.OSVersion = not[string]() }, "macos=warn", "no answer", "macOS 14"},
		"an unknown build":      {func(h *host, _ *doctor.Options) { h.facts.OSBuild = not[string]() }, "", "macOS 15.10", ""},
		"an Intel Mac":          {func(h *host, _ *doctor.Options) { h.facts.AppleSilicon = known(false) }, "chip=fail", "no Apple silicon", "another Mac"},
		"a build for Intel":     {func(_ *host, o *doctor.Options) { o.Arch = "amd64" }, "chip=fail", "built for amd64", "GOARCH=arm64 make build"},
		"an unknown chip":       {func(h *host, _ *doctor.Options) { h.facts.AppleSilicon = not[bool]() }, "chip=warn", "", "Apple silicon"},
		"no hypervisor":         {func(h *host, _ *doctor.Options) { h.facts.Hypervisor = known(false) }, "hypervisor=fail", "kern.hv_support", "on the Mac itself"},
		"an unknown hypervisor": {func(h *host, _ *doctor.Options) { h.facts.Hypervisor = not[bool]() }, "hypervisor=warn", "", "sysctl kern.hv_support"},
		"not entitled":          {func(h *host, _ *doctor.Options) { h.facts.Signature = known(mac.Signature{Path: "/b/x", Valid: true}) }, "signature=fail", "without the entitlement com.apple.security.virtualization", "codesign --force --sign - --entitlements hack/vz.entitlements /b/x"},
		"a path for a shell":    {func(h *host, _ *doctor.Options) { h.facts.Signature = known(mac.Signature{Path: "/b/it's; x"}) }, "signature=fail", "", `hack/vz.entitlements '/b/it'\''s; x'`},
		"signature broken": {func(h *host, _ *doctor.Options) {
			h.facts.Signature = known(mac.Signature{Path: "/b/x", Problem: "modified"})
		}, "signature=fail", "modified", "codesign --force"},
		"an unknown signature": {func(h *host, _ *doctor.Options) { h.facts.Signature = not[mac.Signature]() }, "signature=warn", "", "xcode-select --install"},
		"no framework": {func(_ *host, o *doctor.Options) {
			o.Framework = func() error { return errors.New("built without cgo") }
		}, "framework=fail", "built without cgo", "make build"},
		"a framework":            {func(_ *host, o *doctor.Options) { o.Framework = func() error { return nil } }, "", "can call Virtualization.framework", ""},
		"another file system":    {func(h *host, _ *doctor.Options) { h.facts.FileSystem = known("hfs") }, "file system=fail", "hfs", "--state-dir"},
		"an unknown file system": {func(h *host, _ *doctor.Options) { h.facts.FileSystem = not[string]() }, "file system=warn", "", ""},
		"screen lock at once":    {func(h *host, _ *doctor.Options) { h.facts.ScreenLock = known(mac.ScreenLock{}) }, "screen lock setting=warn", "as soon as the screen saver begins", "sysadminctl -screenLock off"},
		"screen lock, saver": {func(h *host, _ *doctor.Options) {
			h.facts.ScreenLock, h.facts.ScreenSaver = known(mac.ScreenLock{Delay: 5 * time.Second}), known(20*time.Minute)
		}, "screen lock setting=warn", "locked 5s after the screen saver begins or the display goes off: restores fail then; the screen saver begins after 20 min", "idleTime -int 0"},
		"unknown screen lock":      {func(h *host, _ *doctor.Options) { h.facts.ScreenLock = not[mac.ScreenLock]() }, "screen lock setting=warn", "", "sysadminctl"},
		"unknown saver":            {func(h *host, _ *doctor.Options) { h.facts.ScreenSaver = not[time.Duration]() }, "", "", ""},
		"no session":               {func(h *host, _ *doctor.Options) { h.facts.GUISession = known(false) }, "gui session=fail", "VZErrorDomain -9", "killall -HUP loginwindow"},
		"a session behind another": {func(h *host, _ *doctor.Options) { h.facts.Screen = known(mac.Screen{ConsoleUser: "eve"}) }, "gui session=warn", "behind that of eve", "switch back"},
		"an unknown session":       {func(h *host, _ *doctor.Options) { h.facts.GUISession = not[bool]() }, "gui session=warn", "", "launchctl print gui/501"},
		"keychain locked":          {func(h *host, _ *doctor.Options) { h.facts.Keychain = known(mac.Keychain{}) }, "login keychain=fail", "is locked", "security unlock-keychain"},
		"keychain missing":         {func(h *host, _ *doctor.Options) { h.facts.Keychain = known(mac.Keychain{Missing: true}) }, "login keychain=fail", "no login keychain", "create-keychain"},
		"keychain locks itself": {func(h *host, _ *doctor.Options) {
			h.facts.Keychain = known(mac.Keychain{Unlocked: true, LockAfter: 300 * time.Second})
		}, "login keychain=warn", "5 min after its last use", "set-keychain-settings"},
		"keychain sleeps": {func(h *host, _ *doctor.Options) {
			h.facts.Keychain = known(mac.Keychain{Unlocked: true, LockOnSleep: true})
		}, "login keychain=warn", "when the Mac sleeps", "set-keychain-settings"},
		"an unknown keychain": {func(h *host, _ *doctor.Options) { h.facts.Keychain = not[mac.Keychain]() }, "login keychain=warn", "", "unlock-keychain"},
		"screen locked":       {func(h *host, _ *doctor.Options) { h.facts.Screen = known(mac.Screen{Locked: true, OnConsole: true}) }, "screen=warn", "permission denied", "unlock it"},
		"an unknown screen":   {func(h *host, _ *doctor.Options) { h.facts.Screen = not[mac.Screen]() }, "screen=warn", "", ""},
		"it sleeps": {func(h *host, _ *doctor.Options) {
			h.facts.Sleep = known(map[string]mac.Sleep{"AC Power": {System: 10}, "UPS Power": {System: 1}})
		}, "sleep=warn", "after 1 min (UPS Power), after 10 min (AC Power)", "sudo pmset -a sleep 0"},
		"its display sleeps": {func(h *host, _ *doctor.Options) {
			h.facts.Sleep = known(map[string]mac.Sleep{"AC Power": {Display: 10}})
		}, "", "its display does", ""},
		"unknown sleep":          {func(h *host, _ *doctor.Options) { h.facts.Sleep = not[map[string]mac.Sleep]() }, "sleep=warn", "", "pmset"},
		"guests of others":       {func(h *host, _ *doctor.Options) { h.facts.Guests = guests(3) }, "guests=warn", "3 virtual machines run, 2 of them are not ours; at most 128 can, at most 2 of them macOS guests", "killall com.apple.Virtualization.VirtualMachine"},
		"more machines than run": {func(h *host, _ *doctor.Options) { h.machines = 5 }, "", "1 virtual machines run, 0 of them", ""},
		"one below the limit":    {func(h *host, _ *doctor.Options) { h.facts.Guests, h.machines = guests(127), 127 }, "", "", ""},
		"at the limit":           {func(h *host, _ *doctor.Options) { h.facts.Guests, h.machines = guests(128), 128 }, "guests=fail", "128 virtual machines run", "restart the Mac"},
		"an unknown limit":       {func(h *host, _ *doctor.Options) { h.facts.GuestLimit = not[int]() }, "", "at most 2 of them macOS guests", ""},
		"unknown guests":         {func(h *host, _ *doctor.Options) { h.facts.Guests = not[[]mac.Process]() }, "guests=warn", "", "pgrep"},
	} {
		t.Run(name, func(t *testing.T) {
			h := macHost()
			o := doctor.Options{OS: "darwin", Arch: "arm64", StateDir: "/s", CacheDir: "/c", KitDir: "/k", VerifyKit: func(string) error { return nil }}
			c.change(h, &o)
			var got []string
			found, remedies := "", ""
			for _, f := range doctor.Examine(t.Context(), h, o) {
				found += f.Found + "\n"
				if f.Status == doctor.OK {
					if f.Remedy != "" {
						t.Errorf("%s is well and wants %q", f.Name, f.Remedy)
					}
					continue
				}
				got = append(got, f.Name+"="+string(f.Status))
				remedies += f.Remedy + "\n"
			}
			if strings.Join(got, ", ") != c.want || !strings.Contains(found, c.found) || !strings.Contains(remedies, c.remedy) {
				t.Errorf("got %q, want %q\nfound, want %q:\n%sremedies, want %q:\n%s", got, c.want, c.found, found, c.remedy, remedies)
			}
		})
	}
}

// TestConditions: one for each check of what may change; what doctor only advises is no
// problem yet, and what is not known is neither.
func TestConditions(t *testing.T) {
	type change = func(*mac.State)
	for name, c := range map[string]struct {
		change change
		others int
		want   string // what is not well: type=reason, or type?reason when it is not known
	}{
		"all is well":           {func(*mac.State) {}, 0, ""},
		"no session":            {func(s *mac.State) { s.GUISession = known(false) }, 0, "firkin.dev/GUISessionMissing=NoGUISession"},
		"a session behind":      {func(s *mac.State) { s.Screen = known(mac.Screen{ConsoleUser: "eve"}) }, 0, ""},
		"keychain locked":       {func(s *mac.State) { s.Keychain = known(mac.Keychain{}) }, 0, "firkin.dev/KeychainLocked=KeychainLocked"},
		"keychain locks itself": {func(s *mac.State) { s.Keychain = known(mac.Keychain{Unlocked: true, LockOnSleep: true}) }, 0, ""},
		"screen locked":         {func(s *mac.State) { s.Screen = known(mac.Screen{Locked: true}) }, 0, "firkin.dev/ScreenLocked=ScreenLocked"},
		"it sleeps":             {func(s *mac.State) { s.Sleep = known(map[string]mac.Sleep{"AC Power": {System: 1}}) }, 0, "firkin.dev/SleepEnabled=MacSleeps"},
		"guests of others":      {func(*mac.State) {}, 1, "firkin.dev/UnknownVirtualMachines=UnknownVirtualMachines"},
		"nothing is known": {func(s *mac.State) {
			*s = mac.State{GUISession: not[bool](), Screen: not[mac.Screen](), Keychain: not[mac.Keychain](), Sleep: not[map[string]mac.Sleep](), Guests: not[[]mac.Process]()}
		}, 0, "firkin.dev/GUISessionMissing?NotKnown, firkin.dev/KeychainLocked?NotKnown, firkin.dev/ScreenLocked?NotKnown, firkin.dev/SleepEnabled?NotKnown, firkin.dev/UnknownVirtualMachines?NotKnown"},
	} {
		t.Run(name, func(t *testing.T) {
			s := macHost().facts.State
			c.change(&s)
			var got, types []string
			for _, x := range doctor.Conditions(s, "tina", c.others) {
				types = append(types, x.Type)
				if !regexp.MustCompile(`^firkin\.dev/[A-Z][A-Za-z]+$`).MatchString(x.Type) || !regexp.MustCompile(`^[A-Z][A-Za-z]+$`).MatchString(x.Reason) || x.Message == "" {
					t.Errorf("%+v", x)
				}
				switch {
				case x.Problem && x.Unknown:
					t.Errorf("both: %+v", x)
				case x.Problem:
					got = append(got, fmt.Sprintf("%s=%s", x.Type, x.Reason))
					if !strings.Contains(x.Message, "; to do: ") {
						t.Errorf("a problem without a remedy: %+v", x)
					}
				case x.Unknown:
					got = append(got, fmt.Sprintf("%s?%s", x.Type, x.Reason))
				}
			}
			if strings.Join(got, ", ") != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
			if slices.Sort(types); len(slices.Compact(types)) != 5 {
				t.Errorf("types are %v", types)
			}
		})
	}
}
