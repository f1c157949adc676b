// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// mountsOf are the mounts of a container's volumes, its image volumes from their slots. known
// are the variables that subPathExpr may name. It is pure.
func mountsOf(pod *corev1.Pod, c *corev1.Container, known map[string]string, slots map[string]int) ([]*agentv1.Mount, error) {
	out := make([]*agentv1.Mount, 0, len(c.VolumeMounts))
	for i := range c.VolumeMounts {
		m := &c.VolumeMounts[i]
		sub, err := subPath(m, known)
		if err != nil {
			return nil, err
		}
		v := volumeNamed(pod, m.Name)
		if v == nil {
			return nil, fmt.Errorf("cannot find volume %q to mount into container %q", m.Name, c.Name)
		}
		mount := &agentv1.Mount{
			Volume: m.Name, SubPath: sub, Target: m.MountPath,
			ReadOnly:          m.ReadOnly || readOnlyVolume(v),
			RecursiveReadOnly: recursiveReadOnly(m),
		}
		switch {
		case v.HostPath != nil:
			mount.SubPath = path.Join(hostPathContent, sub)
		case v.Image != nil:
			slot, ok := slots[v.Name]
			if !ok {
				return nil, fmt.Errorf("the image of volume %q has changed since the machine was made; delete the pod to get the new one", v.Name)
			}
			n := int32(slot) //nolint:gosec // slots are few
			mount.Volume, mount.ImageSlot = "", &n
		}
		out = append(out, mount)
	}
	return out, nil
}

// subPath is the part of the volume that is mounted; it is below the volume.
func subPath(m *corev1.VolumeMount, known map[string]string) (string, error) {
	sub := m.SubPath
	if m.SubPathExpr != "" {
		var missing []string
		sub = expandBy(m.SubPathExpr, func(name string) (string, bool) {
			value, ok := known[name]
			if !ok {
				missing = append(missing, name)
			}
			return value, ok
		})
		if len(missing) > 0 {
			return "", fmt.Errorf("subPathExpr %q of volume %q: missing value for %q", m.SubPathExpr, m.Name, missing[0])
		}
	}
	switch {
	case path.IsAbs(sub):
		return "", fmt.Errorf("subPath %q of volume %q must not be an absolute path", bound(sub, maxShownPath), m.Name)
	case slices.Contains(strings.Split(sub, "/"), ".."):
		return "", fmt.Errorf("subPath %q of volume %q must not contain '..'", bound(sub, maxShownPath), m.Name)
	case strings.ContainsRune(sub, 0):
		return "", fmt.Errorf("subPath of volume %q contains a zero byte", m.Name)
	}
	return sub, nil
}

// maxShownPath bounds paths in messages: one may come from a variable's content.
const maxShownPath = 256

// readOnlyVolume: what comes from the API and what is an image is read-only in containers.
func readOnlyVolume(v *corev1.Volume) bool { return hasContent(v) || v.Image != nil }

// recursiveReadOnly: nothing below a read-only mount can be written to either.
// https://kubernetes.io/docs/concepts/storage/volumes/#recursive-read-only-mounts
func recursiveReadOnly(m *corev1.VolumeMount) bool {
	return m.ReadOnly && m.RecursiveReadOnly != nil && *m.RecursiveReadOnly != corev1.RecursiveReadOnlyDisabled
}

func volumeNamed(pod *corev1.Pod, name string) *corev1.Volume {
	for i := range pod.Spec.Volumes {
		if v := &pod.Spec.Volumes[i]; v.Name == name {
			return v
		}
	}
	return nil
}

// mountStatus is what the status says of a container's mounts.
func mountStatus(pod *corev1.Pod, c *corev1.Container) []corev1.VolumeMountStatus {
	var out []corev1.VolumeMountStatus
	for i := range c.VolumeMounts {
		m := &c.VolumeMounts[i]
		v := volumeNamed(pod, m.Name)
		if v == nil {
			continue
		}
		st := corev1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly || readOnlyVolume(v)}
		if m.ReadOnly {
			mode := corev1.RecursiveReadOnlyDisabled
			if recursiveReadOnly(m) {
				mode = corev1.RecursiveReadOnlyEnabled
			}
			st.RecursiveReadOnly = &mode
		}
		out = append(out, st)
	}
	return out
}
