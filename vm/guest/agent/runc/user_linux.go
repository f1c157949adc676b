// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	mobyuser "github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

// maxUserFile bounds /etc/passwd and /etc/group of an image.
const maxUserFile = 1 << 20

// user is who a container's processes run as.
type user struct {
	uid, gid int
	groups   []int
	home     string
}

// roots are the directories of a root file system, uppermost first.
func roots(spec agent.ContainerSpec) []string {
	var dirs []string
	if spec.Upper != "" {
		dirs = append(dirs, spec.Upper)
	}
	return append(append(dirs, spec.LowerLayers...), spec.Lower)
}

// resolveUser finds out whom an image and a pod mean. roots are the image below and the
// layers above it: what they say is not trusted to stay inside them.
func resolveUser(roots []string, u agent.User) (user, error) {
	passwd, err := readInRoots(roots, "etc/passwd")
	if err != nil {
		return user{}, err
	}
	group, err := readInRoots(roots, "etc/group")
	if err != nil {
		return user{}, err
	}
	return lookUpUser(u, passwd, group)
}

// readInRoots reads the file of the uppermost layer that has it. A layer that hides
// it without another in its place is not thought of: a system without users has no names to look up.
func readInRoots(roots []string, name string) (string, error) {
	for _, root := range roots {
		if data, err := readInRoot(root, name); err != nil || data != "" {
			return data, err
		}
	}
	return "", nil
}

// lookUpUser decides by the two files of the image. The pod's numbers win over the
// image's user; a group goes with the user that was meant, unless the pod says
// otherwise. The supplemental groups are the image's for that user, unless it is strict about
// them, and the pod's.
func lookUpUser(u agent.User, passwd, group string) (user, error) {
	spec := u.Image
	if u.UID != nil {
		spec = fmt.Sprint(*u.UID)
	}
	found, err := mobyuser.GetExecUser(spec, &mobyuser.ExecUser{Home: "/"}, strings.NewReader(passwd), strings.NewReader(group))
	if err != nil {
		return user{}, fmt.Errorf("%w: user %q: %w", agent.ErrPrecondition, spec, err)
	}
	out := user{uid: found.Uid, gid: found.Gid, home: found.Home}
	if u.GID != nil {
		out.gid = int(*u.GID)
	}
	// The primary group is among them, as containerd does it: a program that drops
	// groups must not gain what the group was denied (CVE-2022-2995).
	out.groups = []int{out.gid}
	if !u.StrictGroups {
		out.groups = append(out.groups, found.Sgids...)
	}
	for _, g := range u.Groups {
		out.groups = append(out.groups, int(g))
	}
	slices.Sort(out.groups)
	out.groups = slices.Compact(out.groups)
	if u.RequireNonRoot && out.uid == 0 {
		return user{}, fmt.Errorf("%w: the pod must not run as root and the image's user is %q (uid 0)", agent.ErrPrecondition, u.Image)
	}
	return out, nil
}

// readInRoot reads a small regular file below root, without following links out of
// it; "" when there is none.
func readInRoot(root, name string) (string, error) {
	handle, err := pathrs.OpenInRoot(root, name)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read %s of the image: %w", name, err)
	}
	defer func() { _ = handle.Close() }()
	// A device or a pipe would block, or worse.
	if st, err := handle.Stat(); err != nil || !st.Mode().IsRegular() {
		return "", err
	}
	f, err := pathrs.Reopen(handle, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return "", fmt.Errorf("read %s of the image: %w", name, err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxUserFile+1))
	if err != nil {
		return "", fmt.Errorf("read %s of the image: %w", name, err)
	}
	if len(data) > maxUserFile {
		return "", fmt.Errorf("%w: %s of the image has more than %d bytes", agent.ErrPrecondition, name, maxUserFile)
	}
	return string(data), nil
}
