// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package mac

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// fake is a Mac as a test describes it.
type fake struct {
	commands map[string]Result // by command line
	strings  map[string]string
	numbers  map[string]uint32
	silent   string // the command that does not end

	mu  sync.Mutex
	ran map[string]int
}

func (f *fake) run(ctx context.Context, name string, args ...string) (Result, error) {
	line := strings.Join(append([]string{name}, args...), " ")
	f.mu.Lock()
	f.ran[line]++
	f.mu.Unlock()
	if f.silent != "" && strings.HasPrefix(line, f.silent) {
		<-ctx.Done()
		return Result{}, ctx.Err()
	}
	r, ok := f.commands[line]
	if !ok {
		return Result{}, fmt.Errorf("run %s: %w", line, exec.ErrNotFound)
	}
	return r, nil
}

func (f *fake) String(name string) (string, error) {
	s, ok := f.strings[name]
	if !ok {
		return "", fs.ErrNotExist
	}
	return s, nil
}

func (f *fake) Uint32(name string) (uint32, error) {
	n, ok := f.numbers[name]
	if !ok {
		return 0, fs.ErrNotExist
	}
	return n, nil
}

const (
	lineScreen   = "/usr/sbin/ioreg -a -n Root -d1"
	lineHardware = "/usr/sbin/ioreg -a -rd1 -c IOPlatformExpertDevice"
	lineKeychain = "/usr/bin/security show-keychain-info /Users/ci/Library/Keychains/login.keychain-db"
)

func healthy(t *testing.T) (*fake, *Mac) {
	f := &fake{
		ran:     map[string]int{},
		strings: map[string]string{"kern.osproductversion": "15.10", "kern.osversion": "24F74"},
		numbers: map[string]uint32{"hw.optional.arm64": 1, "kern.hv_support": 1, "kern.hv.max_address_spaces": 128},
		commands: map[string]Result{
			lineHardware:                               {Stdout: golden(t, "platform.plist")},
			lineScreen:                                 {Stdout: golden(t, "root-unlocked.plist")},
			"/bin/launchctl print gui/501":             {},
			lineKeychain:                               {Stderr: []byte("Keychain \"/x\" no-timeout\n")},
			"/usr/bin/pmset -g custom":                 {Stdout: golden(t, "pmset-desktop.txt")},
			"/bin/ps -axo pid=,ppid=,comm=":            {Stdout: golden(t, "ps.txt")},
			"/usr/sbin/sysadminctl -screenLock status": {Stderr: []byte("screenLock is off\n")},
			"/usr/bin/defaults -currentHost read com.apple.screensaver idleTime": {Stdout: []byte("0\n")},
			"/usr/bin/codesign -d --entitlements - --xml /bin/us":                {Stdout: golden(t, "entitlements.plist")},
			"/usr/bin/codesign -v /bin/us":                                       {},
		},
	}
	return f, &Mac{Run: f.run, Sysctls: f, UID: 501, Home: "/Users/ci", FileSystem: func(string) (string, error) { return "apfs", nil }}
}

func TestHost(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*fake)
		want   func(*framework.Host)
	}{
		"a Mac":                   {func(*fake) {}, func(*framework.Host) {}},
		"macOS 13":                {func(f *fake) { f.strings["kern.osproductversion"] = "13.7.8" }, func(h *framework.Host) { h.OSVersion, h.SaveRestore = "13.7.8", false }},
		"macOS 14":                {func(f *fake) { f.strings["kern.osproductversion"] = "14.0" }, func(h *framework.Host) { h.OSVersion = "14.0" }},
		"an Intel Mac":            {func(f *fake) { delete(f.numbers, "hw.optional.arm64") }, func(h *framework.Host) { h.SaveRestore = false }},
		"an Intel Mac, by its no": {func(f *fake) { f.numbers["hw.optional.arm64"] = 0 }, func(h *framework.Host) { h.SaveRestore = false }},
		"the screen is locked":    {func(f *fake) { f.commands[lineScreen] = Result{Stdout: golden(t, "root-locked.plist")} }, func(h *framework.Host) { h.ScreenLocked = true }},
	} {
		t.Run(name, func(t *testing.T) {
			f, m := healthy(t)
			c.change(f)
			want := framework.Host{OSVersion: "15.10", OSBuild: "24F74", ID: "12345678-1234-5678-9ABC-DEF012345678-501", Accelerator: "vz", SaveRestore: true}
			c.want(&want)
			got, err := m.Host(t.Context())
			if err != nil || got != want {
				t.Errorf("got %+v, %v, want %+v", got, err, want)
			}
		})
	}
}

// A host that is half known is none: its identity keys snapshots.
func TestHostFails(t *testing.T) {
	for name, change := range map[string]func(*fake){
		"no version":       func(f *fake) { delete(f.strings, "kern.osproductversion") },
		"strange version":  func(f *fake) { f.strings["kern.osproductversion"] = "Tahoe" },
		"no build":         func(f *fake) { delete(f.strings, "kern.osversion") },
		"empty build":      func(f *fake) { f.strings["kern.osversion"] = "" },
		"no hardware":      func(f *fake) { f.commands[lineHardware] = Result{} },
		"hardware fails":   func(f *fake) { f.commands[lineHardware] = Result{Exit: 1, Stdout: golden(t, "platform.plist")} },
		"no screen":        func(f *fake) { delete(f.commands, lineScreen) },
		"an unread screen": func(f *fake) { f.commands[lineScreen] = Result{Stdout: []byte("<plist>")} },
	} {
		f, m := healthy(t)
		change(f)
		if h, err := m.Host(t.Context()); err == nil {
			t.Errorf("%s: got %+v, want an error", name, h)
		}
	}
}

func TestHardwareIsAskedOnce(t *testing.T) {
	f, m := healthy(t)
	for range 3 {
		if _, err := m.Host(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if f.ran[lineHardware] != 1 || f.ran[lineScreen] != 3 {
		t.Errorf("hardware was asked for %d times, the screen %d times", f.ran[lineHardware], f.ran[lineScreen])
	}
}

func TestFacts(t *testing.T) {
	_, m := healthy(t)
	got := m.Facts(t.Context(), "/bin/us", "/state")
	want := Facts{
		OSVersion: Known[string]{Value: "15.10"}, OSBuild: Known[string]{Value: "24F74"},
		AppleSilicon: Known[bool]{Value: true}, Hypervisor: Known[bool]{Value: true},
		Signature:  Known[Signature]{Value: Signature{Path: "/bin/us", Valid: true, Virtualization: true}},
		ScreenLock: Known[ScreenLock]{Value: ScreenLock{Off: true}},
		FileSystem: Known[string]{Value: "apfs"},
		State: State{
			UID: 501, GUISession: Known[bool]{Value: true}, Screen: Known[Screen]{Value: Screen{OnConsole: true, ConsoleUser: "ci"}},
			Keychain: Known[Keychain]{Value: Keychain{Unlocked: true}}, Sleep: Known[map[string]Sleep]{Value: map[string]Sleep{"AC Power": {}}},
			Guests: Known[[]Process]{Value: []Process{{41311, 1}, {52000, 1}}}, GuestLimit: Known[int]{Value: 128},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// Nothing that fails may look like an answer.
func TestFactsOfNoMac(t *testing.T) {
	f, m := healthy(t)
	f.commands, f.strings, f.numbers = nil, nil, nil
	m.FileSystem = func(string) (string, error) { return "", errors.New("no") }
	facts := m.Facts(t.Context(), "/bin/us", "/state")
	var walk func(v reflect.Value, name string)
	walk = func(v reflect.Value, name string) {
		for i := range v.NumField() {
			field, name := v.Field(i), v.Type().Field(i).Name
			switch {
			case name == "UID":
			case name == "State":
				walk(field, name)
			case name == "AppleSilicon" || name == "Hypervisor": // a sysctl that is not there is a no
				if field.FieldByName("Value").Bool() {
					t.Errorf("%s is true", name)
				}
			case field.FieldByName("Err").IsNil():
				t.Errorf("%s is known: %+v", name, field)
			}
		}
	}
	walk(reflect.ValueOf(facts), "")
}

// macOS may answer a question for the keychain by a dialog. It is withdrawn, told as not
// known, and not put again for a while.
func TestKeychainIsNotAskedAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, m := healthy(t)
		f.silent = "/usr/bin/security"
		began := time.Now()
		for range 5 {
			if k := m.State(t.Context()).Keychain; !errors.Is(k.Err, errKeychainSilent) {
				t.Errorf("got %+v", k)
			}
		}
		if f.ran[lineKeychain] != 1 || time.Since(began) != keychainTimeout {
			t.Errorf("asked %d times in %v", f.ran[lineKeychain], time.Since(began))
		}
		f.silent = ""
		<-time.After(keychainPause)
		for range 2 {
			if k := m.State(t.Context()).Keychain; k.Err != nil || !k.Value.Unlocked {
				t.Errorf("got %+v", k)
			}
		}
		if f.ran[lineKeychain] != 3 {
			t.Errorf("asked %d times", f.ran[lineKeychain])
		}
	})
}

// A caller that gives up says nothing of the keychain.
func TestKeychainOfACallerThatLeaves(t *testing.T) {
	f, m := healthy(t)
	f.silent = "/usr/bin/security"
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if k := m.State(ctx).Keychain; !errors.Is(k.Err, context.Canceled) {
		t.Errorf("got %+v", k)
	}
	f.silent = ""
	if k := m.State(t.Context()).Keychain; k.Err != nil || !k.Value.Unlocked {
		t.Errorf("got %+v", k)
	}
}

func TestRun(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Fatal(err)
	}
	r, err := Run(t.Context(), sh, "-c", "echo out; echo err >&2; cat; exit 36")
	if err != nil || string(r.Stdout) != "out\n" || string(r.Stderr) != "err\n" || r.Exit != 36 {
		t.Errorf("got %+v, %v", r, err)
	}
	if r, err := Run(t.Context(), sh, "-c", "yes | head -c 3000000; echo done >&2"); err != nil || len(r.Stdout) != maxOutput || string(r.Stderr) != "done\n" {
		t.Errorf("got %d bytes, %q, %v", len(r.Stdout), r.Stderr, err)
	}
	if _, err := Run(t.Context(), filepath.Join(t.TempDir(), "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want that it does not exist", err)
	}
	if _, err := Run(t.Context(), sh, "-c", "kill -9 $$"); err == nil {
		t.Error("a killed command is no answer")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	// The child of the shell keeps the pipe open.
	if _, err := Run(ctx, sh, "-c", "sleep 60 & echo x; wait"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want the time-out", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestThis(t *testing.T) {
	m := This()
	if m.Run == nil || m.Sysctls == nil || m.FileSystem == nil || m.Home == "" {
		t.Errorf("got %+v", m)
	}
}
