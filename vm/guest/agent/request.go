// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// Bounds of requests.
const (
	maxNameBytes    = 128
	maxPodFileBytes = 64 << 10
	maxMounts       = 256
	maxPathBytes    = 4095 // PATH_MAX less the zero byte
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
		if err := checkName(fmt.Sprintf("mounts[%d].volume", i), mount.GetVolume()); err != nil {
			errs = append(errs, err)
		}
		if sub := mount.GetSubPath(); sub != "" && !filepath.IsLocal(sub) || strings.ContainsRune(sub, 0) {
			fault("mounts[%d].sub_path is %q, want a path inside the volume", i, sub)
		}
		if err := checkTarget(fmt.Sprintf("mounts[%d].target", i), mount.GetTarget()); err != nil {
			errs = append(errs, err)
		}
		mounts = append(mounts, Mount{SubPath: mount.GetSubPath(), Target: path.Clean(mount.GetTarget()), ReadOnly: mount.GetReadOnly()})
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
		for i, g := range u.GetSupplementalGroups() {
			checkID(fmt.Sprintf("supplemental_groups[%d]", i), &g)
		}
	}
	r := m.GetResources()
	if r.GetMemoryMaxBytes() < 0 || r.GetCpuQuotaUs() < 0 || r.GetCpuWeight() < 0 || r.GetCpuWeight() > 10000 {
		fault("resources is %v, want no negative values and a cpu_weight up to 10000", r)
	}
	spec := ContainerSpec{
		ID: m.GetId(), Args: m.GetArgs(), Env: m.GetEnv(), WorkingDir: path.Clean(wd), Mounts: mounts,
		User: User{
			Image: u.GetImageUser(), Groups: u.GetSupplementalGroups(), RequireNonRoot: u.GetRequireNonRoot(),
		},
		TTY: m.GetTty(), Stdin: m.GetStdin(), ReadOnlyRoot: m.GetReadOnlyRoot(),
		Resources: Resources{
			MemoryMaxBytes: r.GetMemoryMaxBytes(), CPUQuota: time.Duration(r.GetCpuQuotaUs()) * time.Microsecond, CPUWeight: r.GetCpuWeight(),
		},
	}
	if u != nil {
		spec.User.UID, spec.User.GID = u.Uid, u.Gid
	}
	return spec, errors.Join(errs...)
}
