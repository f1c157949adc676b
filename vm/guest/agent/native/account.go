// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package native

import (
	"errors"
	"fmt"
	"os"
	osuser "os/user"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

// account is who a container's processes run as.
type account struct {
	uid, gid int
	groups   []int // the primary one first
	home     string
}

// maxGroups is NGROUPS_MAX of macOS (sys/syslimits.h): setgroups refuses more there.
const maxGroups = 16

// ownAccount is the agent's own.
func ownAccount() account {
	a := account{uid: os.Geteuid(), gid: os.Getegid(), home: "/"}
	if u, err := osuser.LookupId(strconv.Itoa(a.uid)); err == nil && u.HomeDir != "" {
		a.home = u.HomeDir
	}
	a.groups = []int{a.gid}
	return a
}

// resolve finds out whom an image and a pod mean, by the accounts of the machine, and
// whether the agent, whose account a is, can be that: root is anybody, anybody else only hima. The
// pod's numbers win over the image's user; a group goes with the user that was meant,
// unless the pod says otherwise.
func (a account) resolve(u agent.User) (account, error) {
	spec := u.Image
	if u.UID != nil {
		spec = strconv.FormatInt(*u.UID, 10)
	}
	out := a
	if spec != "" {
		var err error
		if out, err = lookUp(spec); err != nil {
			return account{}, fmt.Errorf("%w: user %q: %w", agent.ErrPrecondition, spec, err)
		}
	}
	if u.GID != nil {
		out.groups = slices.DeleteFunc(slices.Clone(out.groups), func(g int) bool { return g == out.gid })
		out.gid = int(*u.GID)
		out.groups = append([]int{out.gid}, out.groups...)
	}
	if u.StrictGroups {
		out.groups = []int{out.gid}
	}
	for _, g := range u.Groups {
		if !slices.Contains(out.groups, int(g)) {
			out.groups = append(out.groups, int(g))
		}
	}
	if u.RequireNonRoot && out.uid == 0 {
		return account{}, fmt.Errorf("%w: the pod must not run as root and the user is %q (uid 0)", agent.ErrPrecondition, u.Image)
	}
	if a.uid != 0 && (out.uid != a.uid || out.gid != a.gid) {
		return account{}, fmt.Errorf("%w: the agent runs as user %d and cannot start a process as user %d, group %d", agent.ErrPrecondition, a.uid, out.uid, out.gid)
	}
	return out, nil
}

// lookUp reads "user" or "user:group", each a name or a number. A number that the machine
// does not know is taken as it is, as container runtimes do.
func lookUp(spec string) (account, error) {
	name, group, hasGroup := strings.Cut(spec, ":")
	out := account{home: "/"}
	n, numberErr := strconv.ParseUint(name, 10, 31)
	known, err := osuser.Lookup(name)
	if err != nil && numberErr == nil {
		known, err = osuser.LookupId(name)
	}
	unknownName, unknownID := osuser.UnknownUserError(""), osuser.UnknownUserIdError(0)
	switch {
	case err == nil:
		if out.uid, out.gid, err = ids(known); err != nil {
			return account{}, err
		}
		if known.HomeDir != "" {
			out.home = known.HomeDir
		}
	case numberErr == nil && (errors.As(err, &unknownName) || errors.As(err, &unknownID)):
		out.uid = int(n)
	default:
		return account{}, err
	}
	if hasGroup {
		if out.gid, err = lookUpGroup(group); err != nil {
			return account{}, err
		}
	}
	out.groups = []int{out.gid}
	if known == nil || hasGroup {
		return out, nil
	}
	more, err := known.GroupIds()
	if err != nil {
		return account{}, fmt.Errorf("groups: %w", err)
	}
	for _, g := range more {
		if id, err := strconv.Atoi(g); err == nil && !slices.Contains(out.groups, id) {
			out.groups = append(out.groups, id)
		}
	}
	return out, nil
}

func ids(u *osuser.User) (uid, gid int, err error) {
	if uid, err = strconv.Atoi(u.Uid); err != nil {
		return 0, 0, err
	}
	gid, err = strconv.Atoi(u.Gid)
	return uid, gid, err
}

func lookUpGroup(name string) (int, error) {
	if g, err := osuser.LookupGroup(name); err == nil {
		return strconv.Atoi(g.Gid)
	}
	id, err := strconv.ParseUint(name, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("group %q does not exist", name)
	}
	return int(id), nil
}

// credential is nil when the agent cannot be anybody else.
func (a account) credential() *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	groups := a.groups
	if runtime.GOOS == "darwin" && len(groups) > maxGroups {
		groups = groups[:maxGroups]
	}
	c := &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)} //nolint:gosec // 0 to 1<<31-1
	for _, g := range groups {
		c.Groups = append(c.Groups, uint32(g)) //nolint:gosec // 0 to 1<<31-1
	}
	return c
}
