// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/keyutil"
)

// requestCredentials writes what the embedded control plane's node-credentials writes, but asks the cluster for the
// certificates, as the administrator who approves them: nobody else has the authority's key.
func (c *ControlPlane) requestCredentials(ctx context.Context, name, ip, out string) error {
	admin, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig)
	if err != nil {
		return err
	}
	approver, err := kubernetes.NewForConfig(admin)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o700); err != nil {
		return err
	}
	auth, err := approver.CoreV1().ConfigMaps("kube-system").Get(ctx, "extension-apiserver-authentication", metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("ask for the authority of the API server's clients: %w", err)
	}
	if err := os.WriteFile(filepath.Join(out, "client-ca.crt"), []byte(auth.Data["client-ca-file"]), 0o600); err != nil {
		return err
	}

	template := x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:" + name, Organization: []string{"system:nodes"}}}
	chain, key, err := request(ctx, approver, approver, certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.UsageClientAuth, template)
	if err != nil {
		return fmt.Errorf("client certificate: %w", err)
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: admin.Host, CertificateAuthorityData: admin.CAData, TLSServerName: admin.ServerName}
	config.AuthInfos["n"] = &clientcmdapi.AuthInfo{ClientCertificateData: chain, ClientKeyData: key}
	config.Contexts["n"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "n"}
	config.CurrentContext = "n"
	if err := clientcmd.WriteToFile(*config, filepath.Join(out, "kubeconfig")); err != nil {
		return err
	}

	// The signer of serving certificates takes requests of the node itself only.
	own := rest.AnonymousClientConfig(admin)
	own.CertData, own.KeyData = chain, key
	requester, err := kubernetes.NewForConfig(own)
	if err != nil {
		return err
	}
	template.DNSNames, template.IPAddresses = []string{name}, []net.IP{net.ParseIP(ip)}
	chain, key, err = request(ctx, requester, approver, certificatesv1.KubeletServingSignerName, certificatesv1.UsageServerAuth, template)
	if err != nil {
		return fmt.Errorf("serving certificate: %w", err)
	}
	return errors.Join(
		os.WriteFile(filepath.Join(out, "kubelet.crt"), chain, 0o600),
		os.WriteFile(filepath.Join(out, "kubelet.key"), key, 0o600),
	)
}

// request asks for a certificate, approves it and waits until it is signed.
func request(ctx context.Context, requester, approver kubernetes.Interface, signer string, usage certificatesv1.KeyUsage, template x509.CertificateRequest) (chain, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, crypto.Signer(private))
	if err != nil {
		return nil, nil, err
	}
	if key, err = keyutil.MarshalPrivateKeyToPEM(private); err != nil {
		return nil, nil, err
	}
	csr, err := requester.CertificatesV1().CertificateSigningRequests().Create(ctx, &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "vk-firkin-e2e-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			SignerName: signer,
			Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, usage},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("ask for it: %w", err)
	}
	defer func() {
		// Not of ctx: it may be over. What is left, the cluster removes within the hour.
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_ = approver.CertificatesV1().CertificateSigningRequests().Delete(cleanup, csr.Name, metav1.DeleteOptions{})
	}()
	csr.Status.Conditions = append(csr.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "EndToEndTests", Message: "asked for by who approves it",
	})
	if _, err := approver.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, csr.Name, csr, metav1.UpdateOptions{}); err != nil {
		return nil, nil, fmt.Errorf("approve %s: %w", csr.Name, err)
	}
	for {
		now, err := approver.CertificatesV1().CertificateSigningRequests().Get(ctx, csr.Name, metav1.GetOptions{})
		switch {
		case err != nil:
			return nil, nil, err
		case len(now.Status.Certificate) > 0:
			return now.Status.Certificate, key, nil
		}
		for _, condition := range now.Status.Conditions {
			if condition.Type == certificatesv1.CertificateFailed || condition.Type == certificatesv1.CertificateDenied {
				return nil, nil, fmt.Errorf("%s of %s: %s", condition.Type, signer, condition.Message)
			}
		}
		select {
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("%s does not sign %s (kube-controller-manager does, with --cluster-signing-key-file): %w", signer, csr.Name, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}
