// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package mac

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Screen is what the console shows, and to whom.
type Screen struct {
	// Locked: the screen of the user's session is locked; or, when the user has none on
	// this Mac, that of the session on the console.
	Locked bool
	// OnConsole: the user's session is the one that the console shows. Another one is
	// shown after fast user switching.
	OnConsole bool
	// ConsoleUser is the short name of who has the console; empty at the login window.
	ConsoleUser string
}

// parseScreen reads "ioreg -a -n Root -d1". CGSSessionScreenIsLocked is in a session's
// entry only while it is locked (rustdesk #11560 and many others); IOConsoleUsers is an
// empty array at the login window.
//
// Unproven on hardware: that IOConsoleUsers may be left out, in which case
// IOConsoleLocked tells that this is ioreg's root.
func parseScreen(plist []byte, uid int) (Screen, error) {
	v, err := decodePlist(plist)
	if err != nil {
		return Screen{}, err
	}
	root, _ := v.(map[string]any)
	users, found := root["IOConsoleUsers"].([]any)
	if _, console := root["IOConsoleLocked"]; !found && !console {
		return Screen{}, errors.New("IOConsoleUsers is not in the registry's root")
	}
	var s Screen
	var own, console map[string]any
	for _, u := range users {
		user, ok := u.(map[string]any)
		if !ok {
			return Screen{}, errors.New("IOConsoleUsers has an entry that is no dictionary")
		}
		on, _ := user["kCGSSessionOnConsoleKey"].(bool)
		if id, ok := user["kCGSSessionUserIDKey"].(int64); ok && id == int64(uid) {
			own = user
			s.OnConsole = on
		}
		if on {
			console = user
			s.ConsoleUser, _ = user["kCGSSessionUserNameKey"].(string)
		}
	}
	if own == nil {
		own = console
	}
	s.Locked, _ = own["CGSSessionScreenIsLocked"].(bool)
	return s, nil
}

var uuidPattern = regexp.MustCompile(`^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$`)

// parseHardwareUUID reads "ioreg -a -rd1 -c IOPlatformExpertDevice": an array of one
// dictionary (as in jaypipes/ghw's tests).
func parseHardwareUUID(plist []byte) (string, error) {
	v, err := decodePlist(plist)
	if err != nil {
		return "", err
	}
	devices, _ := v.([]any)
	for _, d := range devices {
		device, _ := d.(map[string]any)
		if uuid, ok := device["IOPlatformUUID"].(string); ok {
			if !uuidPattern.MatchString(uuid) {
				return "", fmt.Errorf("IOPlatformUUID is %.64q", uuid)
			}
			return strings.ToUpper(uuid), nil
		}
	}
	return "", errors.New("there is no IOPlatformUUID")
}

// launchctl's exit codes for a domain that there is not: 125 "Domain does not support
// specified action" on a Mac where nobody is logged in at the screen (tuist #10670,
// duh17/oppi #38), 112 on others (lidge-jun/opencodex #1770).
var noDomain = []int{112, 125}

// parseGUISession reads "launchctl print gui/UID": only its exit code, for the manual
// says that the text is for people. Unproven on hardware.
func parseGUISession(r Result) (bool, error) {
	switch {
	case r.Exit == 0:
		return true, nil
	case slices.Contains(noDomain, r.Exit):
		return false, nil
	}
	return false, fmt.Errorf("look for GUI session: %w", r.failed("launchctl"))
}

// Keychain is the state of a keychain.
type Keychain struct {
	Unlocked bool
	// Missing: there is no such keychain, as for a user who never logged in at the screen.
	Missing bool
	// LockAfter is how long after its last use it locks itself; zero is never.
	LockAfter time.Duration
	// LockOnSleep: it locks itself when the Mac sleeps.
	LockOnSleep bool
}

var lockAfter = regexp.MustCompile(`(?:^|\s)timeout=(\d{1,9})s`)

// parseKeychain reads "security show-keychain-info FILE". The answer is on standard
// error: 'Keychain "/Users/ci/Library/Keychains/login.keychain-db" no-timeout', or
// 'lock-on-sleep timeout=300s'. The exit codes are the low byte of Security's OSStatus:
//
//	36   errSecInteractionNotAllowed (-25308): locked, and there is no screen to ask at
//	50   errSecNoSuchKeychain (-25294)
//	51   errSecAuthFailed (-25293): somebody gave a wrong password
//	128  errSecUserCanceled (-128): somebody closed the dialog that asks for it
//
// Unproven on hardware; 36 is known from public threads
// (microsoft/Git-Credential-Manager-for-Mac-and-Linux #26, fastlane #4460). A command
// that does not end proves nothing: macOS may be asking on the screen.
func parseKeychain(r Result) (Keychain, error) {
	said := string(r.Stderr) + string(r.Stdout)
	switch {
	case r.Exit == 0:
		k := Keychain{Unlocked: true} // whatever its settings are
		settings := keychainSettings(said)
		k.LockOnSleep = slices.Contains(strings.Fields(settings), "lock-on-sleep")
		if m := lockAfter.FindStringSubmatch(settings); m != nil {
			seconds, err := strconv.Atoi(m[1])
			if err != nil {
				return Keychain{}, fmt.Errorf("read keychain's time-out: %w", err)
			}
			k.LockAfter = time.Duration(seconds) * time.Second
		}
		return k, nil
	case r.Exit == 36, r.Exit == 51, r.Exit == 128, strings.Contains(said, "User interaction is not allowed"):
		return Keychain{}, nil
	case r.Exit == 50, strings.Contains(said, "could not be found"):
		return Keychain{Missing: true}, nil
	}
	return Keychain{}, fmt.Errorf("ask for login keychain: %w", r.failed("security"))
}

// keychainSettings is what follows the file's name.
func keychainSettings(said string) string {
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, "Keychain ") {
			return line[strings.LastIndexByte(line, '"')+1:]
		}
	}
	return ""
}

// Sleep are the settings of one power source, in minutes; zero is never.
type Sleep struct {
	System, Display, Disk int
	// PowerNap: the Mac works now and then while it sleeps.
	PowerNap bool
}

var settingPattern = regexp.MustCompile(`^(\S.*?)\s+(\d{1,6})(?:\s+\(.*\))?$`)

// parseSleep reads "pmset -g custom": a line "AC Power:", "Battery Power:" or "UPS
// Power:", and below each its settings, name and number, indented. Names may have
// blanks: "Sleep On Power Button 1" is another setting than "sleep". A note about what
// prevents sleep just now may follow in brackets; what is prevented now is not the
// setting.
func parseSleep(out []byte) (map[string]Sleep, error) {
	sources := map[string]Sleep{}
	source := ""
	for line := range strings.Lines(string(out)) {
		text := strings.TrimSpace(line)
		if name, ok := strings.CutSuffix(text, ":"); ok {
			source = ""
			if strings.HasSuffix(name, " Power") {
				source = name
			}
			continue
		}
		m := settingPattern.FindStringSubmatch(text)
		if source == "" || m == nil {
			continue
		}
		n, err := strconv.Atoi(m[2])
		if err != nil {
			return nil, fmt.Errorf("read sleep settings: %w", err)
		}
		s := sources[source]
		switch m[1] {
		case "sleep":
			s.System = n
		case "displaysleep":
			s.Display = n
		case "disksleep":
			s.Disk = n
		case "powernap":
			s.PowerNap = n != 0
		default:
			continue
		}
		sources[source] = s
	}
	if len(sources) == 0 {
		return nil, errors.New("read sleep settings: pmset names no power source")
	}
	return sources, nil
}

// ScreenLock says when the screen is locked by itself.
type ScreenLock struct {
	// Off: never.
	Off bool
	// Delay is how long after the screen saver began, or the display went off.
	Delay time.Duration
}

var lockDelay = regexp.MustCompile(`screenLock delay is (-?\d{1,9})(?:\.\d+)? seconds?`)

// parseScreenLock reads "sysadminctl -screenLock status", which answers on standard
// error by a line of the system's log: "2026-09-21 20:51:30.063 sysadminctl[22795:23833089]
// screenLock is off", "... screenLock delay is immediate", "... screenLock delay is 300
// seconds"; -1 seconds is off too. Known from several public parsers of macOS 13 to 26,
// unproven on hardware of ours.
func parseScreenLock(r Result) (ScreenLock, error) {
	said := append(bytes.Clone(r.Stderr), r.Stdout...)
	switch m := lockDelay.FindSubmatch(said); {
	case m != nil:
		seconds, err := strconv.Atoi(string(m[1]))
		if err != nil {
			return ScreenLock{}, fmt.Errorf("read screen lock setting: %w", err)
		}
		if seconds < 0 {
			return ScreenLock{Off: true}, nil
		}
		return ScreenLock{Delay: time.Duration(seconds) * time.Second}, nil
	case bytes.Contains(said, []byte("screenLock is off")):
		return ScreenLock{Off: true}, nil
	case bytes.Contains(said, []byte("screenLock delay is immediate")):
		return ScreenLock{}, nil
	}
	return ScreenLock{}, fmt.Errorf("read screen lock setting: sysadminctl says %q", r.said())
}

// defaultIdle is when the screen saver begins for a user who never set it. Unproven on
// hardware: Apple's default was 20 minutes when the benchmarks of the Center for Internet
// Security wrote it down (macOS 10.15).
const defaultIdle = 20 * time.Minute

// parseScreenSaver reads "defaults -currentHost read com.apple.screensaver idleTime":
// seconds, zero for never. Where it was never set, defaults ends with exit code 1 and
// says that the pair "does not exist".
func parseScreenSaver(r Result) (time.Duration, error) {
	if r.Exit != 0 {
		if strings.Contains(string(r.Stderr), "does not exist") {
			return defaultIdle, nil
		}
		return 0, fmt.Errorf("read screen saver setting: %w", r.failed("defaults"))
	}
	seconds, err := strconv.ParseUint(strings.TrimSpace(string(r.Stdout)), 10, 31)
	if err != nil {
		return 0, fmt.Errorf("read screen saver setting: defaults says %q", r.said())
	}
	return time.Duration(seconds) * time.Second, nil
}

// Signature is what codesign says of a binary.
type Signature struct {
	// Path is the binary.
	Path string
	// Valid: the code is as it was signed. Problem is what codesign finds wrong.
	Valid   bool
	Problem string
	// Virtualization: it is signed with the entitlement to make virtual machines.
	Virtualization bool
}

// Entitlement is what a binary must be signed with to make virtual machines.
const Entitlement = "com.apple.security.virtualization"

// parseSignature reads "codesign -d --entitlements - --xml FILE", which prints the
// entitlements as a property list on standard output, nothing where there are none, and
// "Executable=FILE" on standard error; and "codesign -v FILE", which prints nothing and
// ends with 0 where the signature is valid, else 1 with the reason ("code object is not
// signed at all", "invalid signature"). 2 is wrong usage (codesign(1)).
func parseSignature(shown, verified Result) (Signature, error) {
	var s Signature
	switch verified.Exit {
	case 0:
		s.Valid = true
	case 1, 3:
		s.Problem = verified.said()
		return s, nil
	default:
		return s, fmt.Errorf("verify signature: %w", verified.failed("codesign"))
	}
	if err := shown.failed("codesign"); err != nil {
		return s, fmt.Errorf("read entitlements: %w", err)
	}
	if len(bytes.TrimSpace(shown.Stdout)) == 0 {
		return s, nil
	}
	v, err := decodePlist(shown.Stdout)
	if err != nil {
		return s, fmt.Errorf("read entitlements: %w", err)
	}
	entitlements, ok := v.(map[string]any)
	if !ok {
		return s, errors.New("read entitlements: they are no dictionary")
	}
	s.Virtualization, _ = entitlements[Entitlement].(bool)
	return s, nil
}

// Process is a process of the host.
type Process struct{ PID, Parent int }

// guestProcess is the framework's helper that holds one virtual machine, the last part of
// .../Virtualization.framework/Versions/A/XPCServices/com.apple.Virtualization.VirtualMachine.xpc/Contents/MacOS/com.apple.Virtualization.VirtualMachine.
const guestProcess = "com.apple.Virtualization.VirtualMachine"

// parseGuests finds the virtual machines in "ps -axo pid=,ppid=,comm=", where comm is the
// program's path, blanks and all. Their parent is launchd, whoever made them: which
// program one belongs to cannot be told from outside, nor what system is in it.
func parseGuests(out []byte) []Process {
	var guests []Process
	for line := range strings.Lines(string(out)) {
		pid, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		parent, program, ok := strings.Cut(strings.TrimSpace(rest), " ")
		if !ok || path.Base(strings.TrimSpace(program)) != guestProcess {
			continue
		}
		p, err := strconv.ParseInt(pid, 10, 32)
		if err != nil {
			continue
		}
		pp, err := strconv.ParseInt(parent, 10, 32)
		if err != nil {
			continue
		}
		guests = append(guests, Process{PID: int(p), Parent: int(pp)})
	}
	return guests
}
