// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// pullTimeout bounds one try to pull an image. A registry that hangs is given up on
// much sooner by vm/image; this only keeps a pod from waiting for ever.
const pullTimeout = 30 * time.Minute

// puller pulls the images of pods, with the kubelet's words for what goes wrong.
type puller struct {
	images  Images
	objects *objects
	events  events
}

// pull gets one image for the pod. container is the first that uses it, for events.
func (p puller) pull(ctx context.Context, pod *corev1.Pod, key imageKey, container string) (*Image, error) {
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	req := PullRequest{Ref: key.ref, Policy: key.policy, Owner: pod.UID}
	if key.policy != PullNever {
		req.Secrets = p.secrets(ctx, pod)
	}
	if key.policy == PullAlways {
		p.events.container(pod, container, false, eventPulling, fmt.Sprintf("Pulling image %q", key.ref))
	}
	began := time.Now()
	img, err := p.images.Pull(ctx, req)
	if err != nil {
		return nil, err
	}
	if img.Present && key.policy != PullAlways {
		p.events.container(pod, container, false, eventPulled, fmt.Sprintf("Container image %q already present on machine", key.ref))
		return &img, nil
	}
	p.events.container(pod, container, false, eventPulled, fmt.Sprintf("Successfully pulled image %q in %s. Image size: %d bytes.",
		key.ref, time.Since(began).Round(time.Millisecond), img.SizeBytes))
	return &img, nil
}

// failed notes a failed pull in the image's state and tells the pod's owner.
func (p puller) failed(pod *corev1.Pod, key imageKey, container string, st *imageState, err error, now time.Time) {
	message := bound(err.Error(), maxEventMessage/2)
	switch {
	case errors.Is(err, ErrImageInvalidName):
		st.reason, st.message, st.fatal = reasonInvalidImage, fmt.Sprintf("Failed to apply default image tag %q: %s", key.ref, message), true
		p.events.container(pod, container, true, eventInspectFailed, st.message)
		p.events.container(pod, container, true, eventFailed, "Error: "+reasonInvalidImage)
		return
	case errors.Is(err, ErrImageNeverPull):
		st.reason = reasonImageNeverPull
		st.message = fmt.Sprintf("Container image %q is not present with pull policy of Never", key.ref)
		st.failures++
		st.retryAt = now.Add(retryDelay(st.failures, backoffFirst, backoffMax))
		p.events.container(pod, container, true, eventNeverPull, st.message)
		p.events.container(pod, container, true, eventFailed, "Error: "+reasonImageNeverPull)
		return
	}
	st.failures++
	st.retryAt = now.Add(retryDelay(st.failures, backoffFirst, backoffMax))
	st.reason, st.message = reasonErrImagePull, message
	st.backOffSaid = false
	p.events.container(pod, container, true, eventFailed, fmt.Sprintf("Failed to pull image %q: %s", key.ref, message))
	p.events.container(pod, container, true, eventFailed, "Error: "+reasonErrImagePull)
}

// backOffAfter is how long ErrImagePull is shown before it becomes ImagePullBackOff;
// the kubelet's next sync does the same a few seconds after the failure.
const backOffAfter = 2 * time.Second

// backedOff turns a failed pull into a back-off once it was shown for a while. It
// returns when to look again, zero for never.
func (p puller) backedOff(pod *corev1.Pod, key imageKey, container string, st *imageState, now time.Time) time.Time {
	if st.image != nil || st.pulling || st.backOffSaid || st.reason != reasonErrImagePull {
		return time.Time{}
	}
	delay := retryDelay(st.failures, backoffFirst, backoffMax)
	if at := st.retryAt.Add(backOffAfter - delay); now.Before(at) {
		return at
	}
	st.backOffSaid = true
	st.message = fmt.Sprintf("Back-off pulling image %q: %s: %s", key.ref, reasonErrImagePull, st.message)
	st.reason = reasonImageBackOff
	p.events.container(pod, container, false, eventBackOff, fmt.Sprintf("Back-off pulling image %q", key.ref))
	p.events.container(pod, container, true, eventFailed, "Error: "+reasonImageBackOff)
	return time.Time{}
}

// secrets reads the pod's pull secrets. One that is missing or of another kind is left
// out, as the kubelet does: the pull then says what is wrong.
func (p puller) secrets(ctx context.Context, pod *corev1.Pod) []PullSecret {
	var out []PullSecret
	for _, ref := range pod.Spec.ImagePullSecrets {
		s, err := p.objects.secret(ctx, pod.Namespace, ref.Name)
		if err != nil {
			p.events.pod(pod, true, eventPullSecret, fmt.Sprintf(
				"Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", ref.Name))
			continue
		}
		switch s.Type {
		case corev1.SecretTypeDockerConfigJson:
			out = append(out, PullSecret{Type: string(s.Type), Data: s.Data[corev1.DockerConfigJsonKey]})
		case corev1.SecretTypeDockercfg:
			out = append(out, PullSecret{Type: string(s.Type), Data: s.Data[corev1.DockerConfigKey]})
		default:
			p.events.pod(pod, true, eventPullSecret, fmt.Sprintf("Image pull secret %s has type %q, which has no registry credentials.", ref.Name, s.Type))
		}
	}
	return out
}
