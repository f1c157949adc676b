// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// Bounds of requests.
const (
	maxNameBytes    = 128
	maxPodFileBytes = 64 << 10
	maxMounts       = 256
	maxPathBytes    = 4095  // PATH_MAX less the zero byte
	maxGroups       = 65536 // NGROUPS_MAX
	maxMemoryBytes  = 1 << 50
	maxQuotaUs      = 1 << 30
	maxPIDs         = 1 << 22 // PID_MAX_LIMIT of linux/threads.h
)

// checkName checks the name of a container or a volume, which become names of
// directories.
func checkName(field, name string) error {
	bad := func(r rune) bool {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		return !letter && r != '_' && r != '.' && r != '-'
	}
	if len(name) == 0 || len(name) > maxNameBytes || strings.ContainsFunc(name, bad) || name == "." || name == ".." {
		return fmt.Errorf("%s is %q, want 1 to %d of [a-zA-Z0-9_.-]", field, name, maxNameBytes)
	}
	return nil
}

// checkHostname accepts what the kernel does, less what would break /etc/hosts.
func checkHostname(name string) error {
	if len(name) == 0 || len(name) > 64 || strings.ContainsAny(name, " \t\n\r\x00/") {
		return fmt.Errorf("hostname is %q, want 1 to 64 bytes without white space", name)
	}
	return nil
}

// containerSpec decodes a request. Volumes, image and pod are filled in later.
func containerSpec(m *agentv1.CreateContainerRequest) (ContainerSpec, error) {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if err := checkName("id", m.GetId()); err != nil {
		errs = append(errs, err)
	}
	if m.GetImageSlot() < 0 {
		fault("image_slot is %d", m.GetImageSlot())
	}
	if len(m.GetArgs()) == 0 || m.GetArgs()[0] == "" {
		fault("args is empty: neither image nor pod says what to run")
	}
	checkStrings := func(field string, values []string) {
		for i, v := range values {
			if strings.ContainsRune(v, 0) {
				fault("%s[%d] contains a zero byte", field, i)
			}
		}
	}
	checkStrings("args", m.GetArgs())
	checkStrings("env", m.GetEnv())
	for i, e := range m.GetEnv() {
		if strings.Index(e, "=") < 1 {
			fault("env[%d] is not KEY=value", i)
		}
	}
	wd := m.GetWorkingDir()
	if wd == "" {
		wd = "/"
	}
	if !path.IsAbs(wd) || strings.ContainsRune(wd, 0) {
		fault("working_dir is %q, want an absolute path", wd)
	}
	if len(m.GetMounts()) > maxMounts {
		fault("mounts has %d entries, at most %d are allowed", len(m.GetMounts()), maxMounts)
	}
	var mounts []Mount
	for i, mount := range m.GetMounts() {
		decoded, err := mountOf(fmt.Sprintf("mounts[%d]", i), mount)
		if err != nil {
			errs = append(errs, err)
		}
		mounts = append(mounts, decoded)
	}
	if target := m.GetTerminationMessagePath(); target != "" {
		if err := checkTarget("termination_message_path", target); err != nil {
			errs = append(errs, err)
		}
	}
	if err := checkLayers(m.GetWritableLayer(), m.GetLowerLayers()); err != nil {
		errs = append(errs, err)
	}
	u := m.GetUser()
	checkID := func(field string, id *int64) {
		if id != nil && (*id < 0 || *id > 1<<31-1) {
			fault("user.%s is %d, want 0 to %d", field, *id, 1<<31-1)
		}
	}
	if u != nil {
		checkID("uid", u.Uid)
		checkID("gid", u.Gid)
		if len(u.GetImageUser()) > maxNameBytes*2 {
			fault("user.image_user has %d bytes, at most %d are allowed", len(u.GetImageUser()), maxNameBytes*2)
		}
		if len(u.GetSupplementalGroups()) > maxGroups {
			fault("user.supplemental_groups has %d entries, at most %d are allowed", len(u.GetSupplementalGroups()), maxGroups)
		}
		for i, g := range u.GetSupplementalGroups() {
			checkID(fmt.Sprintf("supplemental_groups[%d]", i), &g)
		}
	}
	resources, err := resourcesOf(m.GetResources())
	if err != nil {
		errs = append(errs, err)
	}
	security, err := securityOf(m.GetSecurity())
	if err != nil {
		errs = append(errs, err)
	}
	if target := m.GetTargetContainer(); target != "" {
		if err := checkName("target_container", target); err != nil {
			errs = append(errs, err)
		}
	}
	spec := ContainerSpec{
		ID: m.GetId(), Args: m.GetArgs(), Env: m.GetEnv(), WorkingDir: path.Clean(wd), Mounts: mounts,
		User: User{
			Image: u.GetImageUser(), Groups: u.GetSupplementalGroups(), RequireNonRoot: u.GetRequireNonRoot(), StrictGroups: u.GetStrictGroups(),
		},
		TTY: m.GetTty(), Stdin: m.GetStdin(), ReadOnlyRoot: m.GetReadOnlyRoot(),
		Resources: resources, Security: security,
	}
	if u != nil {
		spec.User.UID, spec.User.GID = u.Uid, u.Gid
	}
	return spec, errors.Join(errs...)
}

// mountOf decodes a mount. Where the volume or the image is, is filled in later.
func mountOf(field string, m *agentv1.Mount) (Mount, error) {
	var errs []error
	switch {
	case m.ImageSlot == nil:
		errs = append(errs, checkName(field+".volume", m.GetVolume()))
	case m.GetVolume() != "":
		errs = append(errs, fmt.Errorf("%s has both a volume and an image_slot", field))
	case m.GetImageSlot() < 0:
		errs = append(errs, fmt.Errorf("%s.image_slot is %d", field, m.GetImageSlot()))
	}
	if sub := m.GetSubPath(); sub != "" && !filepath.IsLocal(sub) || strings.ContainsRune(sub, 0) || len(sub) > maxPathBytes {
		errs = append(errs, fmt.Errorf("%s.sub_path is %.128q, want a path inside the volume", field, sub))
	}
	if m.GetRecursiveReadOnly() && !m.GetReadOnly() && m.ImageSlot == nil {
		errs = append(errs, fmt.Errorf("%s.recursive_read_only: the mount is not read_only", field))
	}
	errs = append(errs, checkTarget(field+".target", m.GetTarget()))
	return Mount{
		SubPath: m.GetSubPath(), Target: path.Clean(m.GetTarget()), Image: m.ImageSlot != nil,
		ReadOnly: m.GetReadOnly() || m.ImageSlot != nil, RecursiveReadOnly: m.GetRecursiveReadOnly(),
	}, errors.Join(errs...)
}

// mountDir is the directory of what is to be mounted.
func (cs *containers) mountDir(ctx context.Context, m *agentv1.Mount) (string, error) {
	if m.ImageSlot == nil {
		return cs.volumes.dirOf(m.GetVolume())
	}
	dir, err := cs.system.MountImage(ctx, int(m.GetImageSlot()))
	if err != nil {
		return "", connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("mount image slot %d: %w", m.GetImageSlot(), err))
	}
	return dir, nil
}

func microseconds(n int64) time.Duration { return time.Duration(n) * time.Microsecond }
