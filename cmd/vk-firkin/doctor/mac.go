// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/vz/mac"
)

// check judges one thing about a Mac.
type check[F any] struct {
	name  string
	judge func(F) judgement
}

// judgement is what a check thinks of the facts.
type judgement struct {
	status Status
	// found and remedy are as in Finding.
	found, remedy string
	// unknown: the facts do not say; found tells why, and status is Warn.
	unknown bool
	// advice: all is well now, and will not stay so. The node has no problem yet.
	advice bool
}

func well(found string, args ...any) judgement {
	return judgement{status: OK, found: fmt.Sprintf(found, args...)}
}

func unknown(err error, remedy string) judgement {
	return judgement{status: Warn, found: "not known: " + err.Error(), remedy: remedy, unknown: true}
}

// macChecks are what a Mac is asked for before the checks that every host has, and
// macStateChecks what may change while it runs; those are conditions of the node too.
var (
	macChecks = []check[macFacts]{
		{"macos", judgeMacOS},
		{"chip", judgeChip},
		{"hypervisor", judgeHypervisor},
		{"signature", judgeSignature},
		{"file system", judgeFileSystem},
		{"screen lock setting", judgeScreenLock},
	}
	macStateChecks = []check[macState]{
		{"gui session", judgeGUISession},
		{"login keychain", judgeKeychain},
		{"screen", judgeScreen},
		{"sleep", judgeSleep},
		{"guests", judgeGuests},
	}
)

// macFacts are the facts, and what the binary was built for.
type macFacts struct {
	mac.Facts
	arch, stateDir, user string
}

// macState is the state of a Mac. others is how many virtual machines run there that are
// no machines of the node's.
type macState struct {
	mac.State
	user   string
	others int
}

func examineMac(ctx context.Context, host Host, o Options) []Finding {
	f := macFacts{Facts: host.Mac(ctx, o.StateDir), arch: o.Arch, stateDir: o.StateDir, user: host.User()}
	s := macState{State: f.State, user: f.user}
	machines, err := host.Machines(o.StateDir)
	if err != nil && s.Guests.Err == nil {
		s.Guests.Err = err
	}
	s.others = max(0, len(s.Guests.Value)-machines)
	var findings []Finding
	for _, c := range macChecks {
		findings = append(findings, c.judge(f).finding(c.name))
	}
	if o.Framework != nil {
		j := well("this program can call Virtualization.framework")
		if err := o.Framework(); err != nil {
			j = judgement{status: Fail, found: err.Error(), remedy: "xcode-select --install, then make build on this Mac"}
		}
		findings = append(findings, j.finding("framework"))
	}
	for _, c := range macStateChecks {
		findings = append(findings, c.judge(s).finding(c.name))
	}
	return findings
}

func (j judgement) finding(name string) Finding {
	return Finding{Name: name, Status: j.status, Found: j.found, Remedy: j.remedy}
}

func judgeMacOS(f macFacts) judgement {
	if f.OSVersion.Err != nil {
		return unknown(f.OSVersion.Err, "macOS 14 or newer is needed")
	}
	version, err := mac.ParseVersion(f.OSVersion.Value)
	if err != nil {
		return unknown(err, "macOS 14 or newer is needed")
	}
	found := "macOS " + f.OSVersion.Value
	if f.OSBuild.Err == nil {
		found += " (" + f.OSBuild.Value + ")"
	}
	if !version.AtLeast(14) {
		return judgement{status: Fail, found: found, remedy: "update macOS (softwareupdate --list): before 14 it cannot save machines"}
	}
	return well("%s", found)
}

func judgeChip(f macFacts) judgement {
	switch {
	case f.AppleSilicon.Err != nil:
		return unknown(f.AppleSilicon.Err, "a Mac with Apple silicon is needed")
	case !f.AppleSilicon.Value:
		return judgement{status: Fail, found: "no Apple silicon", remedy: "use another Mac: those with Intel's processors cannot save machines"}
	case f.arch != "arm64":
		return judgement{status: Fail, found: "Apple silicon, but this vk-firkin was built for " + f.arch, remedy: "GOARCH=arm64 make build"}
	}
	return well("Apple silicon")
}

func judgeHypervisor(f macFacts) judgement {
	switch {
	case f.Hypervisor.Err != nil:
		return unknown(f.Hypervisor.Err, "sysctl kern.hv_support says 1 where machines can be made")
	case !f.Hypervisor.Value:
		return judgement{status: Fail, found: "macOS offers no hypervisor here (kern.hv_support is not 1)",
			remedy: "run vk-firkin on the Mac itself: a macOS in a virtual machine cannot make machines"}
	}
	return well("macOS offers its hypervisor")
}

func judgeSignature(f macFacts) judgement {
	if f.Signature.Err != nil {
		return unknown(f.Signature.Err, "codesign -d --entitlements - --xml BINARY shows it; codesign comes with xcode-select --install")
	}
	s := f.Signature.Value
	sign := "codesign --force --sign - --entitlements hack/vz.entitlements " + quote(s.Path)
	switch {
	case !s.Valid:
		return judgement{status: Fail, found: "the signature is not valid: " + s.Problem, remedy: sign}
	case !s.Virtualization:
		return judgement{status: Fail, found: s.Path + " is signed without the entitlement " + mac.Entitlement, remedy: sign}
	}
	return well("signed with the entitlement %s", mac.Entitlement)
}

// quote is for a shell, where a path needs it.
func quote(path string) string {
	if strings.IndexFunc(path, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("/._-+@", r)
	}) < 0 {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

func judgeFileSystem(f macFacts) judgement {
	switch {
	case f.FileSystem.Err != nil:
		return unknown(f.FileSystem.Err, "")
	case f.FileSystem.Value != "apfs":
		return judgement{status: Fail, found: f.stateDir + " is on " + f.FileSystem.Value + ": disks cannot be cloned there", remedy: "choose a --state-dir on an APFS volume; diskutil list shows them"}
	}
	return well("%s is on APFS", f.stateDir)
}

// judgeScreenLock is about the setting; judgeScreen is about now.
func judgeScreenLock(f macFacts) judgement {
	const remedy = "sysadminctl -screenLock off -password -"
	switch {
	case f.ScreenLock.Err != nil:
		return unknown(f.ScreenLock.Err, remedy)
	case f.ScreenLock.Value.Off:
		return well("the screen is never locked by itself")
	}
	when := "as soon as"
	if d := f.ScreenLock.Value.Delay; d > 0 {
		when = duration(d) + " after"
	}
	found := "the screen is locked " + when + " the screen saver begins or the display goes off: restores fail then"
	if f.ScreenSaver.Err == nil {
		if f.ScreenSaver.Value == 0 {
			found += "; the screen saver never begins"
		} else {
			found += "; the screen saver begins after " + duration(f.ScreenSaver.Value)
		}
	}
	return judgement{status: Warn, found: found, remedy: remedy + "; defaults -currentHost write com.apple.screensaver idleTime -int 0"}
}

func duration(d time.Duration) string {
	if d%time.Minute == 0 {
		return fmt.Sprintf("%d min", int(d.Minutes()))
	}
	return d.String()
}

func judgeGUISession(s macState) judgement {
	const remedy = "log in at the screen or by Screen Sharing, and switch on automatic login; where that is on: sudo killall -HUP loginwindow"
	switch {
	case s.GUISession.Err != nil:
		return unknown(s.GUISession.Err, fmt.Sprintf("launchctl print gui/%d says it", s.UID))
	case !s.GUISession.Value:
		return judgement{status: Fail, found: "user " + s.user + " has no graphical session: the framework gets no key for machines (VZErrorDomain -9)", remedy: remedy}
	case s.Screen.Err == nil && !s.Screen.Value.OnConsole && s.Screen.Value.ConsoleUser != "":
		return judgement{advice: true, status: Warn, found: "user " + s.user + " has a graphical session behind that of " + s.Screen.Value.ConsoleUser, remedy: "switch back to the user on the screen, and log the other one out"}
	}
	return well("user %s has a graphical session", s.user)
}

func judgeKeychain(s macState) judgement {
	const unlock = "security unlock-keychain ~/Library/Keychains/login.keychain-db"
	const keep = "security set-keychain-settings ~/Library/Keychains/login.keychain-db"
	switch k := s.Keychain.Value; {
	case s.Keychain.Err != nil:
		return unknown(s.Keychain.Err, unlock)
	case k.Missing:
		return judgement{status: Fail, found: "user " + s.user + " has no login keychain", remedy: "log in at the screen once, which makes it; or security create-keychain login.keychain-db && security default-keychain -s login.keychain-db"}
	case !k.Unlocked:
		return judgement{status: Fail, found: "the login keychain is locked: the framework gets no key for machines", remedy: unlock}
	case k.LockAfter > 0 || k.LockOnSleep:
		when := "when the Mac sleeps"
		if k.LockAfter > 0 {
			when = duration(k.LockAfter) + " after its last use"
		}
		return judgement{advice: true, status: Warn, found: "the login keychain is unlocked, but locks itself " + when, remedy: keep}
	}
	return well("the login keychain is unlocked")
}

func judgeScreen(s macState) judgement {
	switch {
	case s.Screen.Err != nil:
		return unknown(s.Screen.Err, "")
	case s.Screen.Value.Locked:
		return judgement{status: Warn, found: "the screen is locked: restores fail with \"permission denied\", and machines are booted instead",
			remedy: "unlock it, then: sysadminctl -screenLock off -password -"}
	}
	return well("the screen is not locked")
}

func judgeSleep(s macState) judgement {
	const remedy = "sudo pmset -a sleep 0 displaysleep 0 disksleep 0 powernap 0"
	if s.Sleep.Err != nil {
		return unknown(s.Sleep.Err, remedy)
	}
	var sleeps []string
	for source, settings := range s.Sleep.Value {
		if settings.System > 0 {
			sleeps = append(sleeps, fmt.Sprintf("after %d min (%s)", settings.System, source))
		}
	}
	if len(sleeps) > 0 {
		slices.Sort(sleeps)
		return judgement{status: Warn, found: "the Mac sleeps " + strings.Join(sleeps, ", ") + ": its pods stop and the node is lost", remedy: remedy}
	}
	for _, settings := range s.Sleep.Value {
		if settings.Display > 0 {
			return well("the Mac does not sleep; its display does, which is fine while the screen lock is off")
		}
	}
	return well("the Mac does not sleep")
}

func judgeGuests(s macState) judgement {
	const list = "pgrep -fl com.apple.Virtualization.VirtualMachine"
	limit := fmt.Sprintf("at most %d of them macOS guests", mac.MacOSGuestLimit)
	if s.Guests.Err != nil {
		return unknown(s.Guests.Err, list)
	}
	most := 0
	if s.GuestLimit.Err == nil {
		most = s.GuestLimit.Value
		limit = fmt.Sprintf("at most %d can, %s", most, limit)
	}
	count := len(s.Guests.Value)
	found := fmt.Sprintf("%d virtual machines run, %d of them are not ours; %s", count, s.others, limit)
	switch {
	case most > 0 && count >= most:
		return judgement{status: Fail, found: found, remedy: list + "; end the programs that they belong to; restart the Mac when they stay"}
	case s.others > 0:
		// Helper processes stay behind (cirruslabs/orchard #138), and the framework's quota
		// leaks until the Mac restarts (UTM #5563).
		return judgement{status: Warn, found: found, remedy: list + "; those whose program has ended were left behind and count against the limits: killall com.apple.Virtualization.VirtualMachine ends all, ours too; restart the Mac when VZErrorDomain 6 goes on"}
	}
	return well("%s", found)
}
