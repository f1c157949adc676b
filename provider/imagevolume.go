// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// An image volume is an image in a slot of the machine, like a container's: it is pulled
// with them, before the machine, and mounted read-only where a container says.
// https://kubernetes.io/docs/concepts/storage/volumes/#image

// imageVolumeKey is the image of a volume that is one.
func imageVolumeKey(v *corev1.Volume) imageKey {
	policy := PullPolicy(v.Image.PullPolicy)
	if policy == "" {
		policy = DefaultPullPolicy(v.Image.Reference)
	}
	return imageKey{ref: v.Image.Reference, policy: policy}
}

// imageVolumes adds the images of volumes to those of containers.
func (p *plan) imageVolumes(pod *corev1.Pod) {
	for i := range pod.Spec.Volumes {
		if v := &pod.Spec.Volumes[i]; v.Image != nil {
			if key := imageVolumeKey(v); !slices.Contains(p.images, key) {
				p.images = append(p.images, key)
				p.late = slices.DeleteFunc(p.late, func(k imageKey) bool { return k == key })
			}
		}
	}
}

// imageVolumesOutside refuses image volumes whose image the template does not bring.
func imageVolumesOutside(pod *corev1.Pod, t *Template) *refusal {
	for i := range pod.Spec.Volumes {
		if v := &pod.Spec.Volumes[i]; v.Image != nil && !slices.Contains(t.Images, v.Image.Reference) {
			return &refusal{Reason: ReasonImageNotInTemplate, Message: fmt.Sprintf(
				"spec.volumes[%d].image.reference: %q is not among the images of SnapshotTemplate %q: %s", i, v.Image.Reference, t.ID(), strings.Join(t.Images, ", "))}
		}
	}
	return nil
}

// imageVolumeSlots are the slots of the pod's image volumes in its machine, by their names.
// One whose image is not in the machine is left out.
func imageVolumeSlots(s *state) map[string]int {
	var slots map[string]int
	for i := range s.pod.Spec.Volumes {
		v := &s.pod.Spec.Volumes[i]
		if v.Image == nil {
			continue
		}
		img := s.images[imageVolumeKey(v)]
		if img == nil || img.image == nil {
			continue
		}
		if slot := slices.Index(s.machine.slots, img.image.Digest); slot >= 0 {
			if slots == nil {
				slots = map[string]int{}
			}
			slots[v.Name] = slot
		}
	}
	return slots
}

// imageVolumeWait is why a container waits for an image volume that it mounts; empty when it
// does not.
func imageVolumeWait(s *state, c *corev1.Container) (reason, message string) {
	for i := range c.VolumeMounts {
		v := volumeNamed(s.pod, c.VolumeMounts[i].Name)
		if v == nil || v.Image == nil {
			continue
		}
		if img := s.images[imageVolumeKey(v)]; img != nil && img.image == nil && img.reason != "" {
			return img.reason, fmt.Sprintf("volume %q: %s", v.Name, img.message)
		}
	}
	return "", ""
}
