// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package mac finds out what a Mac is and in what state: what decides whether machines
// can be made, saved and restored on it. It asks macOS by its own commands and sysctls,
// without cgo, and changes nothing.
//
// What the commands print is parsed by functions that run on any system and are tested
// there. No format was ever compared with a Mac of ours: each parser names where its
// format is known from, and what is unproven on hardware.
package mac

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// Known is a fact, or why it is not known.
type Known[T any] struct {
	Value T
	Err   error
}

func known[T any](v T, err error) Known[T] { return Known[T]{Value: v, Err: err} }

// Facts are what doctor looks at. Those of State change while the Mac runs.
type Facts struct {
	// OSVersion is the product version, "15.10"; OSBuild its build, "24F74". A build that
	// differs from the one before is an upgrade.
	OSVersion, OSBuild Known[string]
	// AppleSilicon: the processor is Apple's, also for a process under Rosetta.
	AppleSilicon Known[bool]
	// Hypervisor: the kernel has a hypervisor that may be used.
	Hypervisor Known[bool]
	// Signature is that of the binary that was asked about.
	Signature Known[Signature]
	// ScreenLock says when the screen will be locked.
	ScreenLock Known[ScreenLock]
	// ScreenSaver is how long until the screen saver begins; zero is never.
	ScreenSaver Known[time.Duration]
	// FileSystem is the type of the file system that holds the directory asked about:
	// "apfs".
	FileSystem Known[string]
	State
}

// State is what changes while the Mac runs.
type State struct {
	// UID is the user whose session, keychain and machines it is about.
	UID int
	// GUISession: that user has a graphical (Aqua) session.
	GUISession Known[bool]
	// Screen is what the console shows.
	Screen Known[Screen]
	// Keychain is the user's login keychain.
	Keychain Known[Keychain]
	// Sleep are the sleep settings by power source, "AC Power".
	Sleep Known[map[string]Sleep]
	// Guests are the processes of virtual machines of the framework, whoever started them.
	Guests Known[[]Process]
	// GuestLimit is how many virtual machines the kernel holds at once.
	GuestLimit Known[int]
}

// MacOSGuestLimit is how many macOS guests the framework runs at once on a Mac: Apple's
// licence, enforced by VZErrorVirtualMachineLimitExceeded (code 6). Nothing outside of
// the framework tells how many run.
const MacOSGuestLimit = 2

// Sysctls reads the kernel's values. An error of a name that there is not is
// fs.ErrNotExist.
type Sysctls interface {
	String(name string) (string, error)
	Uint32(name string) (uint32, error)
}

// Mac asks about one Mac for one user. Its methods are safe for concurrent use.
type Mac struct {
	// Run runs macOS's commands.
	Run Runner
	// Sysctls reads the kernel's values.
	Sysctls Sysctls
	// FileSystem is the type of the file system that holds a path.
	FileSystem func(path string) (string, error)
	// UID and Home are the user's.
	UID  int
	Home string

	mu       sync.Mutex
	hardware string    // the hardware's UUID: it does not change
	hung     time.Time // when the keychain's question was not answered
}

// This is the Mac that the process runs on, and its user. On another system whatever is
// asked fails.
func This() *Mac {
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/var/empty" // no keychain is found there, and that is said
	}
	return &Mac{Run: Run, Sysctls: kernel{}, FileSystem: fileSystem, UID: os.Getuid(), Home: home}
}

// Host tells what machines run on, for vm/vz. Who asks more than once keeps a Mac and asks
// that one, which looks for the hardware once.
func Host(ctx context.Context) (framework.Host, error) { return This().Host(ctx) }

// Host tells what machines run on. What is said of the screen is a moment old when it is
// used: a restore that fails may still be a screen that was locked meanwhile.
func (m *Mac) Host(ctx context.Context) (framework.Host, error) {
	h := framework.Host{Accelerator: "vz"}
	var err error
	if h.OSVersion, err = m.Sysctls.String(sysctlVersion); err != nil {
		return h, fmt.Errorf("read macOS version: %w", err)
	}
	version, err := ParseVersion(h.OSVersion)
	if err != nil {
		return h, err
	}
	if h.OSBuild, err = m.Sysctls.String(sysctlBuild); err != nil {
		return h, fmt.Errorf("read macOS build: %w", err)
	}
	if h.OSBuild == "" {
		return h, errors.New("read macOS build: it is empty")
	}
	silicon, err := m.flag(sysctlArm64)
	if err != nil {
		return h, fmt.Errorf("read kind of processor: %w", err)
	}
	// saveMachineStateTo(url:) is API_AVAILABLE(macos(14.0)) and not there on Intel.
	h.SaveRestore = silicon && version.AtLeast(14)
	hardware, err := m.HardwareUUID(ctx)
	if err != nil {
		return h, err
	}
	h.ID = fmt.Sprintf("%s-%d", hardware, m.UID)
	screen, err := m.screen(ctx)
	if err != nil {
		return h, err
	}
	h.ScreenLocked = screen.Locked
	return h, nil
}

// The names of sysctls. The version is taken from the kernel because sw_vers answers
// "10.16" to a process with SYSTEM_VERSION_COMPAT in its environment.
const (
	sysctlVersion    = "kern.osproductversion"
	sysctlBuild      = "kern.osversion"
	sysctlArm64      = "hw.optional.arm64"
	sysctlHypervisor = "kern.hv_support"
	// sysctlGuests is 128 on the Macs that public notes tell of; what xnu's own test
	// (tests/hvtest) demands is at least that.
	sysctlGuests = "kern.hv.max_address_spaces"
)

// flag reads a sysctl that is there, and 1, where something is supported.
func (m *Mac) flag(name string) (bool, error) {
	v, err := m.Sysctls.Uint32(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return v == 1, err
}

// Facts asks for everything, all at once. binary is the file whose signature matters,
// dir the directory where machines are kept; both must exist.
func (m *Mac) Facts(ctx context.Context, binary, dir string) Facts {
	var f Facts
	f.OSVersion = known(m.Sysctls.String(sysctlVersion))
	f.OSBuild = known(m.Sysctls.String(sysctlBuild))
	f.AppleSilicon = known(m.flag(sysctlArm64))
	f.Hypervisor = known(m.flag(sysctlHypervisor))
	f.FileSystem = known(m.FileSystem(dir))
	var wg sync.WaitGroup
	wg.Go(func() { f.Signature = known(m.signature(ctx, binary)) })
	wg.Go(func() { f.ScreenLock = known(m.screenLock(ctx)) })
	wg.Go(func() { f.ScreenSaver = known(m.screenSaver(ctx)) })
	wg.Go(func() { f.State = m.State(ctx) })
	wg.Wait()
	return f
}

// State asks for what changes, all at once. It ends with ctx, or with the time-outs of
// the commands.
func (m *Mac) State(ctx context.Context) State {
	s := State{UID: m.UID}
	limit, err := m.Sysctls.Uint32(sysctlGuests)
	s.GuestLimit = known(int(limit), err)
	var wg sync.WaitGroup
	wg.Go(func() { s.GUISession = known(m.guiSession(ctx)) })
	wg.Go(func() { s.Screen = known(m.screen(ctx)) })
	wg.Go(func() { s.Keychain = known(m.keychain(ctx)) })
	wg.Go(func() { s.Sleep = known(m.sleep(ctx)) })
	wg.Go(func() { s.Guests = known(m.guests(ctx)) })
	wg.Wait()
	return s
}

// HardwareUUID identifies the Mac. It is asked for once.
func (m *Mac) HardwareUUID(ctx context.Context) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.hardware == "" {
		r, err := m.output(ctx, "/usr/sbin/ioreg", "-a", "-rd1", "-c", "IOPlatformExpertDevice")
		if err != nil {
			return "", fmt.Errorf("find hardware UUID: %w", err)
		}
		if m.hardware, err = parseHardwareUUID(r.Stdout); err != nil {
			return "", fmt.Errorf("find hardware UUID: %w", err)
		}
	}
	return m.hardware, nil
}

func (m *Mac) screen(ctx context.Context) (Screen, error) {
	r, err := m.output(ctx, "/usr/sbin/ioreg", "-a", "-n", "Root", "-d1")
	if err != nil {
		return Screen{}, fmt.Errorf("look at console: %w", err)
	}
	s, err := parseScreen(r.Stdout, m.UID)
	if err != nil {
		return Screen{}, fmt.Errorf("look at console: %w", err)
	}
	return s, nil
}

func (m *Mac) guiSession(ctx context.Context) (bool, error) {
	r, err := m.Run(ctx, "/bin/launchctl", "print", fmt.Sprintf("gui/%d", m.UID))
	if err != nil {
		return false, fmt.Errorf("look for GUI session: %w", err)
	}
	return parseGUISession(r)
}

const (
	// keychainTimeout is short: what is longer waits for a person. See parseKeychain.
	keychainTimeout = 5 * time.Second
	// keychainPause is how long nothing is asked after that.
	keychainPause = 10 * time.Minute
)

// keychain asks for the login keychain's settings, which a locked one does not tell. In
// a GUI session macOS may ask the person at the screen for the password instead of
// answering: then the question is withdrawn, and not put again for a while, so that an
// unattended desktop does not fill with dialogs.
func (m *Mac) keychain(ctx context.Context) (Keychain, error) {
	m.mu.Lock()
	hung := m.hung
	m.mu.Unlock()
	if !hung.IsZero() && time.Since(hung) < keychainPause {
		return Keychain{}, errKeychainSilent
	}
	asked, cancel := context.WithTimeout(ctx, keychainTimeout)
	defer cancel()
	r, err := m.Run(asked, "/usr/bin/security", "show-keychain-info", filepath.Join(m.Home, "Library", "Keychains", "login.keychain-db"))
	silent := asked.Err() != nil && ctx.Err() == nil
	m.mu.Lock()
	m.hung = time.Time{}
	if silent {
		m.hung = time.Now()
	}
	m.mu.Unlock()
	if silent {
		return Keychain{}, errKeychainSilent
	}
	if err != nil {
		return Keychain{}, fmt.Errorf("ask for login keychain: %w", err)
	}
	return parseKeychain(r)
}

var errKeychainSilent = errors.New("macOS did not answer in time; it may be asking for the keychain's password on the screen")

func (m *Mac) sleep(ctx context.Context) (map[string]Sleep, error) {
	r, err := m.output(ctx, "/usr/bin/pmset", "-g", "custom")
	if err != nil {
		return nil, fmt.Errorf("read sleep settings: %w", err)
	}
	return parseSleep(r.Stdout)
}

func (m *Mac) guests(ctx context.Context) ([]Process, error) {
	r, err := m.output(ctx, "/bin/ps", "-axo", "pid=,ppid=,comm=")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	return parseGuests(r.Stdout), nil
}

func (m *Mac) screenLock(ctx context.Context) (ScreenLock, error) {
	r, err := m.output(ctx, "/usr/sbin/sysadminctl", "-screenLock", "status")
	if err != nil {
		return ScreenLock{}, fmt.Errorf("read screen lock setting: %w", err)
	}
	return parseScreenLock(r)
}

func (m *Mac) screenSaver(ctx context.Context) (time.Duration, error) {
	r, err := m.Run(ctx, "/usr/bin/defaults", "-currentHost", "read", "com.apple.screensaver", "idleTime")
	if err != nil {
		return 0, fmt.Errorf("read screen saver setting: %w", err)
	}
	return parseScreenSaver(r)
}

func (m *Mac) signature(ctx context.Context, binary string) (Signature, error) {
	shown, err := m.Run(ctx, "/usr/bin/codesign", "-d", "--entitlements", "-", "--xml", binary)
	if err != nil {
		return Signature{}, fmt.Errorf("read entitlements: %w", err)
	}
	verified, err := m.Run(ctx, "/usr/bin/codesign", "-v", binary)
	if err != nil {
		return Signature{}, fmt.Errorf("verify signature: %w", err)
	}
	s, err := parseSignature(shown, verified)
	s.Path = binary
	return s, err
}

// output runs a command that must end well.
func (m *Mac) output(ctx context.Context, name string, args ...string) (Result, error) {
	r, err := m.Run(ctx, name, args...)
	if err != nil {
		return r, err
	}
	return r, r.failed(name)
}
