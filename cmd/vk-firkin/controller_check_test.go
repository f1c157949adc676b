// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/warmpool/controller/approver"
)

// checkedCluster answers like an API server.
type checkedCluster struct {
	client.Reader
	unserved error
	joined   error
	lease    func() (coordinationv1.LeaseSpec, error)
}

func (c checkedCluster) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	if _, ok := list.(*v1alpha1.NodeLedgerList); ok {
		return c.unserved
	}
	return nil
}

func (c checkedCluster) Get(_ context.Context, key client.ObjectKey, object client.Object, _ ...client.GetOption) (err error) {
	if _, ok := object.(*corev1.ConfigMap); ok && key == (client.ObjectKey{Namespace: "ns", Name: approver.JoinedName}) {
		return c.joined
	}
	l := object.(*coordinationv1.Lease)
	l.Namespace, l.Name = key.Namespace, key.Name
	l.Spec, err = c.lease()
	return err
}

func held(by string, renewed time.Time) coordinationv1.LeaseSpec {
	return coordinationv1.LeaseSpec{HolderIdentity: &by, LeaseDurationSeconds: ptr.To(int32(15)), RenewTime: ptr.To(metav1.NewMicroTime(renewed))}
}

func TestControllerCheck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		atWork := func() (coordinationv1.LeaseSpec, error) { return held("pod-1", time.Now()), nil }
		forbidden := apierrors.NewForbidden(corev1.Resource("configmaps"), approver.JoinedName, nil)
		for name, tc := range map[string]struct {
			cluster checkedCluster
			manual  bool // certificates are approved by hand
			says    string
		}{
			"at work":  {cluster: checkedCluster{lease: func() (coordinationv1.LeaseSpec, error) { return held("pod-1", time.Now()), nil }}},
			"given up": {cluster: checkedCluster{lease: func() (coordinationv1.LeaseSpec, error) { return held("", time.Now()), nil }}, says: "nobody holds the lease ns/vk-firkin-controller"},
			"dead":     {cluster: checkedCluster{lease: func() (coordinationv1.LeaseSpec, error) { return held("pod-1", start.Add(-time.Hour)), nil }}, says: "pod-1 has not renewed"},
			"empty":    {cluster: checkedCluster{lease: func() (coordinationv1.LeaseSpec, error) { return coordinationv1.LeaseSpec{}, nil }}, says: "nobody holds"},
			"none":     {cluster: checkedCluster{lease: func() (coordinationv1.LeaseSpec, error) { return coordinationv1.LeaseSpec{}, errors.New("not found") }}, says: "see the logs of its pods"},
			"no resources": {cluster: checkedCluster{unserved: errors.New("no matches for kind"),
				lease: func() (coordinationv1.LeaseSpec, error) { return held("pod-1", time.Now()), nil }}, says: "crds.enabled"},
			"may not read who joined": {cluster: checkedCluster{joined: forbidden, lease: atWork}, says: "make the ConfigMap vk-firkin-joined of namespace ns, and let the controller get"},
			"and does not need to":    {cluster: checkedCluster{joined: forbidden, lease: atWork}, manual: true},
			"where nobody joined":     {cluster: checkedCluster{joined: apierrors.NewNotFound(corev1.Resource("configmaps"), approver.JoinedName), lease: atWork}},
			"comes up": {cluster: checkedCluster{lease: func() (coordinationv1.LeaseSpec, error) {
				if time.Since(start) < 20*time.Second {
					return coordinationv1.LeaseSpec{}, errors.New("not yet")
				}
				return held("pod-2", time.Now()), nil
			}}},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			var out bytes.Buffer
			err := waitForController(ctx, tc.cluster, "ns", !tc.manual, &out)
			cancel()
			if tc.says == "" && (err != nil || !strings.Contains(out.String(), "is at work")) || tc.says != "" && (err == nil || !strings.Contains(err.Error(), tc.says)) {
				t.Errorf("%s: %v, want %q; printed %q", name, err, tc.says, out.String())
			}
		}
	})
}
